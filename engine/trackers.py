"""Trackers by name, as `loop.trackers` lists them. A plug-in may add one.

TRACKERS["csv"] = CsvTracker        # a class like `engine.tracker.Tracker`
"""

from __future__ import annotations

from engine.tensorboard_log import TensorBoardTracker
from engine.tracker import Tracker
from engine.wandb_run import WandbTracker

TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbTracker, "tensorboard": TensorBoardTracker}
