"""How a run ended: finished, stopped, failed, running, or unfinished without a reason on record."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from engine.checkpoint.manifest import newest_checkpoint, phase_folders, record_folders
from engine.config import read_yaml
from engine.folder_lock import is_locked
from engine.pipeline import StageLog
from engine.run_log import read_lines, read_metrics
from evaluations.run_layout import REPORT_STAGE

State = Literal["finished", "running", "stopped", "failed", "unfinished"]

LOG_TAIL = 64 * 1024  # bytes of the end of log.txt that are looked at
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(,\d{3})? ", re.MULTILINE)  # with milliseconds: not the end
END_OF_PROCESS = re.compile(r"process (\d+): (.*)", re.DOTALL)
MAX_REASON = 300  # characters


@dataclass(frozen=True)
class Ending:
    """The state of a run, and a sentence that explains it."""

    state: State
    text: str


@dataclass(frozen=True)
class Progress:
    """How far a training came, and when."""

    step: int  # finished steps
    steps: int | None  # asked for; None where the folder has no config
    total: int | None  # of the schedules: more than `steps` where the config ends the training early
    began: float | None  # seconds since 1970
    seconds: float  # spent by all starts together, up to their last records
    starts: int


# ------------------------------------------------------------------------------------------------ one training
def last_folder(path: Path) -> Path:
    """The folder of the newest phase of a training; the training itself where it has no phases."""
    return (path, *phase_folders(path))[-1]


def starts_of(path: Path) -> list[dict[str, Any]]:
    """The records of all starts of a training, of all phases."""
    return [start for folder in record_folders(path) for start in read_lines(folder / "starts.jsonl")]


def progress_of(path: Path) -> Progress:
    """How far the newest phase of a training came; the time is that of all its phases."""
    folder = last_folder(path)
    records = read_metrics(folder)
    newest = newest_checkpoint(folder)
    steps_saved = int(newest.name.removeprefix("step_")) if newest is not None else 0
    config = read_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else OmegaConf.create()
    loop = config.get("loop") or {}

    starts = starts_of(path)
    all_records = records if folder == path else read_metrics(path)
    times = [record["time"] for record in all_records if "time" in record]
    began = [float(start["time"]) for start in starts]
    return Progress(
        step=int(max([steps_saved, *(record["step"] for record in records)])),
        steps=_last_step(loop),
        total=int(loop["steps"]) if loop.get("steps") else None,
        began=began[0] if began else None,
        seconds=_seconds_spent(began, times),
        starts=len(starts),
    )


def _last_step(loop: Any) -> int | None:
    """The step at which a training ends: earlier than its length where its config says so."""
    ends = [int(loop[key]) for key in ("steps", "stop_at") if loop.get(key)]
    return min(ends) if ends else None


def _seconds_spent(began: Sequence[float], times: Sequence[float]) -> float:
    """The time from each start to the last record before the next one."""
    seconds = 0.0
    for start, next_start in pairwise([*began, math.inf]):
        of_start = [time for time in times if start <= time < next_start]
        seconds += max(of_start) - start if of_start else 0.0
    return seconds


def training_ending(path: Path) -> Ending:
    """How a single training ended, by its records, its lock and the end of its log."""
    folder = last_folder(path)
    progress = progress_of(path)
    phase = f"{folder.name.replace('_', ' ')}: " if folder != path else ""
    done = f"{phase}step {progress.step:,}"
    if progress.steps is not None:
        done += f" of {progress.steps:,}"

    if progress.steps is not None and progress.step >= progress.steps:
        if progress.total is not None and progress.total > progress.steps:
            done = f"{phase}after step {progress.step:,} of {progress.total:,}"
            return Ending("stopped", f"{done}, as loop.stop_at says; a larger one, or 0, continues")
        return Ending("finished", f"{phase}all {progress.steps:,} steps are done")
    if is_locked(folder):
        return Ending("running", f"a process is training it: {done}")
    end = end_of_log(folder)
    match = END_OF_PROCESS.match(end)
    if match is not None:
        reason = match[2].strip().splitlines()[-1].removeprefix("error: ")[:MAX_REASON]
        return Ending("failed", f"{done}: {reason}")
    if end.startswith("stopped by"):
        return Ending("stopped", f"{end.strip()[:MAX_REASON]} ({done})")
    return Ending("unfinished", f"{done}; its log names no reason, as after a kill or a power cut")


def end_of_log(folder: Path) -> str:
    """The last entry of log.txt without its time; empty where there is none. An entry may have several lines."""
    path = folder / "log.txt"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL))
        tail = file.read().decode("utf-8", errors="replace")
    stamps = list(STAMP.finditer(tail))
    return tail[stamps[-1].end() :] if stamps else ""


def warnings_of(path: Path) -> list[str]:
    """What the logs of a training warned of, each once, in order."""
    lines: dict[str, None] = {}
    for folder in record_folders(path):
        log = folder / "log.txt"
        if log.is_file():
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                _, mark, text = line.partition("warning: ")
                if mark:
                    lines[text] = None
    return list(lines)


# ------------------------------------------------------------------------------------------------ a pipeline
def pipeline_ending(path: Path) -> Ending | None:
    """How a pipeline ended, by its log of stages; None where there is none.

    The stage of the report does not count: it is running while its page is written.
    """
    log = StageLog(path)
    stages = [name for name in log.stages if name != REPORT_STAGE]
    if not stages:
        return None
    unfinished = [name for name in stages if not log.done(name)]
    if unfinished:
        return Ending("unfinished", f"stage {', '.join(unfinished)} is not finished; the same command continues")
    seconds = sum(log.seconds()[name] for name in stages)
    return Ending("finished", f"all {len(stages)} stages are done, in {duration_text(seconds)}")


# ------------------------------------------------------------------------------------------------ times
def duration_text(seconds: float) -> str:
    """A duration as people say it: 42 s, 12 min, 3 h 20 min, 2 days, 4:00:00."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 24 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return str(timedelta(seconds=round(seconds)))


def date_text(time: float) -> str:
    """A time as a date, in UTC."""
    return datetime.fromtimestamp(time, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
