"""A tracker: a service or a file format that shows the records of a run. metrics.jsonl stays the record itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEP_OF_NAME = re.compile(r"(.+)_(\d+)")  # a picture: what it shows, and its step

Record = Mapping[str, float]  # of metrics.jsonl: step, time, and metrics by name


class Tracker:
    """One tracker of one run; `engine.trackers.TRACKERS` has them by name.

    `section` is its part of `loop`, `config` the whole config. The constructor raises UserError where it cannot start:
    a package or a key is missing. Only the first process has trackers.
    """

    def __init__(self, run_dir: Path, section: Any, config: Any) -> None:
        raise NotImplementedError

    def begin(self, step: int, records: Sequence[Record]) -> None:
        """The training goes on from `step`; `records` are all on file, later ones than `step` included.

        A tracker that lacks some up to `step` takes them from there; those of later steps will come again.
        """

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes one record."""

    def log_picture(self, path: Path) -> None:
        """Takes a picture whose file is named `<what>_<step>.png`."""

    def finish(self, summary: Mapping[str, Any], checkpoint: Path | None) -> None:
        """The training is finished; `checkpoint` is the folder of its last one."""

    def where(self) -> str:
        """Where a user finds what it shows: an address, or a command."""
        raise NotImplementedError

    def close(self, failed: bool) -> None:
        """Ends the tracking of this process."""


def run_name(run_dir: Path) -> str:
    """The name of a run for people: that of its folder; of a phase with the folder around it."""
    folder = run_dir.resolve()
    return f"{folder.parent.name} {folder.name}" if folder.name.startswith("phase_") else folder.name


def picture_kind(path: Path) -> tuple[str, int | None]:
    """What a picture shows and at which step, by the name of its file."""
    match = STEP_OF_NAME.fullmatch(path.stem)
    return (match[1], int(match[2])) if match else (path.stem, None)


def record_kind(step: float, metrics: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """What tells records apart: a step may have one of the training and one of the validation."""
    return int(step), frozenset(metrics) - {"step", "time"}


def metrics_of(record: Record) -> dict[str, float]:
    """The metrics of a record on file."""
    return {name: value for name, value in record.items() if name not in ("step", "time")}
