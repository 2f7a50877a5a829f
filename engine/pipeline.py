"""A pipeline of commands that can be stopped anywhere: finished stages are skipped.

    log = run_stages(run_dir, [Stage("train", [...]), Stage("report", [...], always=True)])

`<run>/stages.json` holds for each stage whether it is done and how many seconds it took, of the clock and of processor
time, summed over interruptions. Processor time is that of attempts that ended while the pipeline was there.
An unfinished stage is started again: it is a process and resumes by its own means, as a training from its newest
checkpoint. A stage that does not resume, and writes its `product` all or nothing, is done where that exists.
"""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from engine import plugins
from engine.atomic_file import write_atomic
from engine.installation import launch_command, launch_environment
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.stopping import EXIT_STOPPED, handled, names_of, stop_with_parent

HEARTBEAT = 1.0  # seconds between two notes of the time spent


@dataclass(frozen=True)
class Stage:
    """A named command."""

    name: str
    command: list[str]
    always: bool = False  # always rerun: cheap, and picks up new results
    product: Path | None = None  # written as a whole at the end: where it exists, the stage is done

    @property
    def module(self) -> str:
        """The module that `module_stage` was made with."""
        return self.command[self.command.index("-m") + 1]

    @property
    def arguments(self) -> list[str]:
        """What the module is called with."""
        return self.command[self.command.index("-m") + 2 :]

    def is_done(self, log: StageLog) -> bool:
        """Whether nothing is left to do. Never for a stage that is always rerun."""
        return not self.always and (log.done(self.name) or (self.product is not None and self.product.exists()))


def module_stage(name: str, module: str, *arguments: str) -> Stage:
    """A stage that runs a module of this project, on the processes that the environment asks for."""
    return Stage(name, launch_command(module, *plugins.flags(), *arguments))


def config_flags(files: Iterable[str | Path]) -> list[str]:
    """The flags that give a command these YAMLs or recipes, later ones over earlier ones."""
    return [part for file in files for part in ("--config", str(file))]


class StageError(UserError):
    """A stage that failed, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StageLog:
    """Which stages are done, how long they took, and how much of the processors."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "stages.json"
        self.stages: dict[str, dict] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def done(self, name: str) -> bool:
        """Whether a stage ended well."""
        return self.stages.get(name, {}).get("done", False)

    def seconds(self) -> dict[str, float]:
        """{stage: seconds}, to a tenth."""
        return {name: round(entry["seconds"], 1) for name, entry in self.stages.items()}

    def cpu_seconds(self) -> dict[str, float]:
        """{stage: seconds of processor time, over all cores}, to a tenth; only of stages that noted it."""
        return {name: round(entry["cpu_seconds"], 1) for name, entry in self.stages.items() if "cpu_seconds" in entry}

    def before(self, name: str) -> tuple[float, float]:
        """The seconds, and those of processor time, of the interrupted attempts of a stage.

        A finished stage starts from 0 again.
        """
        entry = {} if self.done(name) else self.stages.get(name, {})
        return entry.get("seconds", 0.0), entry.get("cpu_seconds", 0.0)

    def note(self, name: str, seconds: float, cpu_seconds: float, *, done: bool) -> None:
        """Writes down what is known of a stage, atomically."""
        self.stages[name] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "done": done}
        write_atomic(self.path, to_json(self.stages, indent=1))


def run_stages(
    run_dir: Path, stages: list[Stage], after: Callable[[Stage, StageError | None], None] | None = None
) -> StageLog:
    """Runs the stages in order; finished ones are skipped.

    `after` is for stages that do not need one another: it is called after each that was run, with its failure if it
    failed, and the next one follows in any case.

    Raises StageError if a stage fails and there is no `after`, SystemExit with code 75 after a stop signal; the same
    call continues later.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    log = StageLog(run_dir)
    for number, stage in enumerate(stages, start=1):
        if stage.is_done(log):
            logger.info("[%d/%d] %s: done before, skipped", number, len(stages), stage.name)
            continue

        # The stage; its failure ends the pipeline unless there is an `after`.
        logger.info("[%d/%d] %s: %s", number, len(stages), stage.name, " ".join(stage.command))
        failure = None
        try:
            _run(stage, log)
        except StageError as error:
            if after is None:
                raise
            failure = error
            logger.warning("[%d/%d] %s", number, len(stages), error)

        # What it took, in either case.
        logger.info("[%d/%d] %s: %.0f s", number, len(stages), stage.name, log.stages[stage.name]["seconds"])
        if after is not None:
            after(stage, failure)
    return log


def _cpu_seconds_of_children() -> float:
    """Processor time of all child processes that have ended, with their own children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(stage: Stage, log: StageLog) -> None:
    """Runs one stage to its end and notes its time; a stop signal to this process reaches the stage.

    The stage is a process group of its own. Ctrl-C therefore reaches it once, through this process, and not twice.
    """
    seconds_before, cpu_seconds_before = log.before(stage.name)
    start, cpu_start = time.monotonic(), _cpu_seconds_of_children()
    signals: list[int] = []

    def note(done: bool) -> None:
        seconds = seconds_before + time.monotonic() - start
        cpu_seconds = cpu_seconds_before + _cpu_seconds_of_children() - cpu_start
        log.note(stage.name, seconds, cpu_seconds, done=done)

    def pass_on(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        process.send_signal(number)

    process = subprocess.Popen(stage.command, env=launch_environment(), preexec_fn=stop_with_parent, process_group=0)
    exit_code = None
    with handled(pass_on):
        try:
            # Wait in short pieces: a kill of this process then loses no more than a heartbeat of the time.
            while exit_code is None:
                try:
                    exit_code = process.wait(timeout=HEARTBEAT)
                except subprocess.TimeoutExpired:
                    note(done=False)
        finally:
            note(done=exit_code == 0)

    # A signal ends the pipeline, even if the stage was through before it could stop.
    if signals:
        state = "is finished" if exit_code == 0 else f"ended with exit code {exit_code}"
        logger.info("stopped by %s; stage %r %s; the same command continues", names_of(signals), stage.name, state)
        raise SystemExit(EXIT_STOPPED)
    if exit_code != 0:
        message = f"stage {stage.name!r} ended with exit code {exit_code}; the same command continues it"
        raise StageError(message, exit_code)
