"""Runs the stages of a pipeline as forks of this process, and kills each of them once.

What is killed is a real process that calls the `main` of the real command with the real command line; the seconds that
`import torch` takes at every start are saved.
"""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from mains import main_of

from engine import pipeline
from engine.cli import run_entry
from engine.pipeline import Stage, StageError, StageLog

LIMIT = 120  # seconds for a stage
OF_THE_PIPELINE = {"stages.json", "commands.json"}


def files_below(folder: Path) -> set[Path]:
    """All files and folders in the folder of a run, but for those of the pipeline itself."""
    return {path for path in folder.rglob("*") if path.name not in OF_THE_PIPELINE} if folder.is_dir() else set()


def fork_of(stage: Stage) -> int:
    """Starts a stage as a fork; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        sys.argv = [stage.module, *stage.arguments]
        run_entry(main_of(stage.module))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        os._exit(code)


class ForkedStages:
    """Takes the place of `engine.pipeline._run`. Where `kills` is set, each stage is killed at its first start, as soon
    as it has written something.
    """

    def __init__(self, run: Path, *, kills: bool = False) -> None:
        self.run = run
        self.kills = kills
        self.killed: list[str] = []  # stages, in the order in which they were killed
        self.ended: list[str] = []  # stages, in the order in which they ended well

    def __call__(self, stage: Stage, log: StageLog) -> None:
        before = files_below(self.run)
        process = fork_of(stage)
        status = None
        end = time.monotonic() + LIMIT
        while status is None:
            assert time.monotonic() < end, f"the stage {stage.name} does not end"
            number, code = os.waitpid(process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if number else None
            if self.kills and stage.name not in self.killed and (status == 0 or files_below(self.run) - before):
                self._kill(stage, process, has_ended=status is not None)
            time.sleep(0.01)
        log.note(stage.name, 1.0, 1.0, done=status == 0)
        if status != 0:
            raise StageError(f"stage {stage.name!r} ended with exit code {status}", status)
        self.ended.append(stage.name)

    def _kill(self, stage: Stage, process: int, *, has_ended: bool) -> None:
        """Kills a stage; of one that was too fast, nobody notes that it has ended."""
        if not has_ended:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        self.killed.append(stage.name)
        raise StageError(f"stage {stage.name!r} was killed", -signal.SIGKILL)


def run_in_forks(module: str, arguments: list[str], stages: ForkedStages) -> int:
    """Runs a pipeline once; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_run", stages)
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            run_entry(main_of(module))
        except SystemExit as stop:
            return stop.code
    return 0
