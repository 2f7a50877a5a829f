"""What a run leaves behind: its config, log, metric records and image grids; optionally in trackers as well.

    <run>/config.yaml      the resolved config of the newest start
    <run>/git_sha.txt      the commit of the newest start
    <run>/starts.jsonl     one record per start: command, code, libraries, device, environment
    <run>/log.txt          what the console showed
    <run>/metrics.jsonl    the record: one line per step that is logged, with time and metrics by name
    <run>/samples/         image grids
    <run>/.lock            held while a process trains here

`Run` writes them; `read_lines` and `read_metrics` read them back.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from engine.alerts import ALERTS, Alert, Record, alerts_for
from engine.atomic_file import write_atomic
from engine.checkpoint.manifest import newest_checkpoint, record_folders
from engine.config import to_yaml
from engine.counts import counted
from engine.data import grids
from engine.finite import NonFiniteValuesError
from engine.folder_lock import FolderInUse, lock_folder
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.run_record import start_record
from engine.tracker import Tracker
from engine.trackers import TRACKERS
from engine.world import World

BAR_METRICS_LENGTH = 100  # characters of the metrics that the progress bar shows


class Run:
    """Run directory and logger, to be used in a `with`. Only rank 0 writes, but for the traceback of a crash.

    `alerts` are what to look for in each record (`engine.alerts`); a kind of training may replace them by its own.
    `trackers` are those that the run has, {name: section of the config} (`engine.loop.LoopConfig.tracker_sections`).

    Raises UserError if the folder cannot be written, another process trains in it, or a tracker cannot start.
    """

    def __init__(
        self, run_dir: str | Path, config: Any, world: World, trackers: Mapping[str, Any] | None = None
    ) -> None:
        self.dir = Path(run_dir)
        self.config = config
        self.world = world
        self.alerts: Mapping[str, Alert] = ALERTS
        self.bar: tqdm | None = None
        self._trackers: dict[str, Tracker] = {}
        self._last_record: dict[frozenset[str], Record] = {}  # kind of record -> the newest one
        if not world.is_main:
            return

        try:
            (self.dir / "samples").mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.dir)
            for name in ("metrics.jsonl", "starts.jsonl"):
                _end_torn_line(self.dir / name)
            self._handler = _log_to_file(self.dir / "log.txt")
            if world.summary:  # the console has it already
                self._handler.handle(logger.makeRecord(logger.name, logging.INFO, "", 0, world.summary, (), None))
        except FolderInUse as error:
            raise UserError(f"run {error}; wait, or set loop.run_dir") from error
        except OSError as error:
            raise UserError(f"run folder {self.dir} cannot be written: {error}") from error
        try:
            for name, section in (trackers or {}).items():
                self._trackers[name] = TRACKERS[name](self.dir, section, config)
        except UserError:
            self.close(failed=True)
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the log and frees the folder. An error is written to log.txt, with its traceback if it is a crash."""
        if isinstance(error, UserError):
            self._note_end(f"error: {error}")
        elif isinstance(error, Exception):
            self._note_end("".join(traceback.format_exception(error)))
        self.close(failed=error is not None and not isinstance(error, SystemExit))

    def _note_end(self, text: str) -> None:
        """Writes the end of this process to log.txt, whichever rank it is."""
        try:
            with (self.dir / "log.txt").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {self.world.rank}: {text.rstrip()}\n")
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.dir / "log.txt", error)

    def report_hang(self, text: str) -> None:
        """Writes why this process ends itself, to the console and to log.txt."""
        print(text, file=sys.stderr, flush=True)
        self._note_end(text)

    def write_config(self) -> None:
        """Writes config, commit and the circumstances of this start, once it is certain that this run goes on."""
        if not self.world.is_main:
            return
        record = start_record(self.world)
        write_atomic(self.dir / "config.yaml", to_yaml(self.config))
        write_atomic(self.dir / "git_sha.txt", record["git"]["sha"] + "\n")
        _append_line(self.dir / "starts.jsonl", record)

    def begin(self, step: int) -> None:
        """Tells the trackers from which step this training goes on."""
        if self._trackers:
            records = read_metrics(self.dir)
            for tracker in self._trackers.values():
                tracker.begin(step, records)

    def finish(self, step: int, *, total: int = 0, is_new: bool = True) -> None:
        """Says at the end of a training how to go on and where everything lies; the trackers get a summary, if this is
        its first end. `total` are the steps of its schedules where it ends earlier (`loop.stop_at`).
        """
        if not self.world.is_main:
            return
        ending = f"finished after {step:,} steps"
        if total > step:
            ending = (
                f"stopped after step {step:,} of {total:,} (loop.stop_at); the same command with a larger "
                "loop.stop_at, or 0, continues"
            )

        # Where everything lies.
        checkpoint = newest_checkpoint(self.dir)
        places = places_of(self.dir, checkpoint)
        if is_new:
            summary = {"steps": step, "run_dir": str(self.dir), "state": ending.partition(" ")[0]}
            for name, tracker in self._trackers.items():
                tracker.finish(summary, checkpoint)
                places[name] = tracker.where()
        self.log("\n".join([ending, *(f"  {n:11s} {text}" for n, text in places.items())]))

    def log(self, text: str) -> None:
        """Writes one line (or table) for people, on the console and in log.txt."""
        if self.world.is_main:
            logger.info(text)

    def start_bar(self, start: int, total: int) -> None:
        """Shows a progress bar from step `start` to `total`, where the console is a terminal."""
        if self.world.is_main:
            self.bar = tqdm(None, self.dir.name, total, initial=start, unit="step", dynamic_ncols=True, disable=None)

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        if self.bar is not None:
            self.bar.update()

    def log_metrics(self, step: int, metrics: Mapping[str, float], show: tuple[str, ...] = (), note: str = "") -> None:
        """Appends one record to metrics.jsonl, shows it, and raises alerts.

        `show` names the metrics that the console prints (default: all), and `note` follows them; six significant
        digits are kept on file.
        """
        if not self.world.is_main or not metrics:
            return
        rounded = {name: float(f"{value:.6g}") for name, value in metrics.items()}
        _append_line(self.dir / "metrics.jsonl", {"step": step, "time": round(time.time(), 3), **rounded})

        # The console, the progress bar and the log get a short form.
        shown = [name for name in (show or metrics) if name in metrics]
        text = "  ".join(f"{name} {metrics[name]:.4g}" for name in shown)
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(text[:BAR_METRICS_LENGTH], refresh=False)
        self.log(f"step {step}: {text}  {note}".rstrip())

        # Alerts compare a record with the one before it of the same kind: training with training, val/ with val/.
        kind = frozenset(name.partition("/")[0] for name in metrics if "/" in name)
        for warning in alerts_for(metrics, self._last_record.get(kind, {}), self.alerts):
            self.log(f"step {step}: {warning}")
        self._last_record[kind] = dict(metrics)

        for tracker in self._trackers.values():
            tracker.log(metrics, step)

    def save_grid(
        self, name: str, images: Tensor, columns: int, row_names: Sequence[str] = (), caption: str = ""
    ) -> None:
        """Writes an image grid to samples/<name>.png, with names beside its rows and a caption above.

        Images (B,3,H,W) in [-1,1].

        Where pixels are not finite, there is a warning and no picture.
        """
        if not self.world.is_main:
            return
        path = self.dir / "samples" / f"{name}.png"
        try:
            grids.save_grid(path, images, columns, row_names=row_names, caption=caption)
        except NonFiniteValuesError as error:
            self.log(f"warning: no picture {name}: {error}")
            return
        for tracker in self._trackers.values():
            tracker.log_picture(path)

    def close(self, failed: bool = False) -> None:
        """Ends the log and the trackers, and frees the folder."""
        if not self.world.is_main:
            return
        if self.bar is not None:
            self.bar.close()
        self._lock.release()
        logger.removeHandler(self._handler)
        self._handler.close()
        for tracker in self._trackers.values():
            tracker.close(failed)


def places_of(run_dir: Path, checkpoint: Path | None) -> dict[str, str]:
    """{what: where} of a finished training, for people, with the command that shows it."""
    grids = list((run_dir / "samples").glob("*.png"))
    places = {
        "checkpoint": str(checkpoint) if checkpoint is not None else "none",
        "metrics": str(run_dir / "metrics.jsonl"),
    }
    if grids:
        places["samples"] = f"{run_dir / 'samples'} ({counted(len(grids), 'picture')})"
    return {**places, "report": f"python -m evaluations.report {shlex.quote(str(run_dir))}"}


def _end_torn_line(path: Path) -> None:
    """Ends a last line that a killed process tore, so that the next record starts on its own line."""
    with path.open("a+b") as file:
        file.seek(max(0, file.tell() - 1))
        last_byte = file.read()
        if last_byte not in (b"", b"\n"):
            file.write(b"\n")


def _append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Appends one record to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(to_json(record) + "\n")


def _log_to_file(path: Path) -> logging.Handler:
    """Makes the program's logger write to a file as well, with the time in front."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


# ------------------------------------------------------------------------------------------------ reading
def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a file of JSON lines; a line that a killed process tore is dropped."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def read_metrics(run_dir: str | Path) -> list[dict[str, float]]:
    """Reads the metric records of a run, by ascending step; a number that was not finite is NaN.

    Where a resume repeated a step, the later record counts. The phases of a run in phases are read as one, with steps
    that go on from phase to phase.
    """
    records: dict[tuple[int, tuple[str, ...]], dict[str, float]] = {}  # (step, metric names) -> record
    for folder in record_folders(Path(run_dir)):
        steps_before = max((step for step, _ in records), default=0)
        for record in read_lines(folder / "metrics.jsonl"):
            record = {name: math.nan if value is None else value for name, value in record.items()}
            record["step"] += steps_before
            records[(record["step"], tuple(sorted(record)))] = record
    return sorted(records.values(), key=lambda record: record["step"])
