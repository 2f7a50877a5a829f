"""A pipeline of commands that can be stopped anywhere: finished stages are skipped, an unfinished one is started again.

`<run>/stages.json` holds, for each stage, whether it is done and the seconds it took, summed over interruptions. Each
stage is its own process, so that it resumes by its own means.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from engine import plugins
from engine.checkpoint.manifest import write_atomic
from engine.messages import UserError, logger

HEARTBEAT = 1.0  # seconds between two notes of the time spent


PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Stage:
    """A named command."""

    name: str
    command: list[str]
    always: bool = False  # run each time: it is quick, and shows what may have become more


def python(name: str, module: str, *arguments: str) -> Stage:
    """A stage that runs a module of this project, on the processes that the environment asks for."""
    return Stage(name, ["bash", "scripts/launch.sh", "-m", module, *plugins.flags(), *arguments])


class StageError(UserError):
    """A stage that failed or was stopped."""


def _die_with_parent() -> None:
    """On Linux: the stage gets SIGTERM when this process is killed, so that no orphan writes on."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return


class StageLog:
    """Which stages are done and how long they took."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "stages.json"
        self.stages: dict[str, dict] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def done(self, name: str) -> bool:
        return self.stages.get(name, {}).get("done", False)

    def seconds(self) -> dict[str, float]:
        return {name: round(entry["seconds"], 1) for name, entry in self.stages.items()}

    def note(self, name: str, seconds: float, done: bool) -> None:
        self.stages[name] = {"seconds": seconds, "done": done}
        write_atomic(self.path, json.dumps(self.stages, indent=1))


def run_stages(run_dir: Path, stages: list[Stage]) -> StageLog:
    """Runs the stages in order. A failing or interrupted stage raises; the same call goes on with it later."""
    run_dir.mkdir(parents=True, exist_ok=True)
    log = StageLog(run_dir)
    for number, stage in enumerate(stages, start=1):
        if log.done(stage.name) and not stage.always:
            logger.info("[%d/%d] %s: done before, skipped", number, len(stages), stage.name)
            continue
        logger.info("[%d/%d] %s: %s", number, len(stages), stage.name, " ".join(stage.command))
        _run(stage, log)
        logger.info("[%d/%d] %s: %.0f s", number, len(stages), stage.name, log.stages[stage.name]["seconds"])
    return log


def _run(stage: Stage, log: StageLog) -> None:
    before = 0.0 if log.done(stage.name) else log.stages.get(stage.name, {}).get("seconds", 0.0)
    start = time.monotonic()
    process = subprocess.Popen(stage.command, preexec_fn=_die_with_parent)
    stopping = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    code = None
    try:
        while code is None:
            try:
                code = process.wait(timeout=HEARTBEAT)
            except subprocess.TimeoutExpired:
                log.note(stage.name, before + time.monotonic() - start, False)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, stopping)
        log.note(stage.name, before + time.monotonic() - start, code == 0)
    if code != 0:
        raise StageError(f"stage {stage.name!r} ended with exit code {code}; the same command continues it")
