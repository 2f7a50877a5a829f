"""A run in TensorBoard: its metrics, config and pictures, in event files under <run>/tensorboard.

    tensorboard --logdir runs/          shows all runs of a folder

The files are written by tensorboardX. A resumed training writes a further one, which takes back what earlier ones hold
of later steps (`purge_step`), so that TensorBoard shows each step once.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.atomic_file import writer_token
from engine.config import to_yaml
from engine.installation import install_hint
from engine.messages import UserError
from engine.tracker import Record, Tracker, metrics_of, picture_kind

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """The event file of one start. Raises UserError if tensorboardX is not installed."""

    def __init__(self, run_dir: Path, section: Any, config: Any) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            command = install_hint("quickstart", "tensorboard")
            raise UserError(f"loop.trackers=[tensorboard] needs tensorboardX; run: {command}") from error
        self._library = tensorboardX
        self._folder = run_dir / FOLDER
        self._config = config
        self._writer: Any = None

    def begin(self, step: int, records: Sequence[Record]) -> None:
        """Opens the file of this start; the first one gets all earlier records."""
        is_first = not list(self._folder.glob("events.out.tfevents.*"))
        # Steps of records count finished steps, so the next one is at least step + 1.
        self._writer = self._library.SummaryWriter(
            str(self._folder),
            purge_step=None if is_first else step + 1,
            flush_secs=0,  # each event at once, by a thread: a killed process loses none that is older than a moment
            filename_suffix=f".{writer_token()}",  # else two starts in one second would share a file
        )
        if is_first:
            for record in records:
                if record["step"] <= step:
                    self.log(metrics_of(record), int(record["step"]))
        self._writer.add_text("config", "".join(f"    {line}\n" for line in to_yaml(self._config).splitlines()), step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes a record."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_picture(self, path: Path) -> None:
        """Writes a picture under the name of what it shows."""
        kind, step = picture_kind(path)
        with Image.open(path) as image:
            self._writer.add_image(f"samples/{kind}", np.asarray(image.convert("RGB")), step or 0, dataformats="HWC")

    def where(self) -> str:
        """The command that shows this run."""
        return f"tensorboard --logdir {shlex.quote(str(self._folder))}"

    def close(self, failed: bool) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.close()
