"""Threads of a CPU: what the way they wait for one another costs, on idle cores and beside other programs.

A thread that is done waits for the others before the next operation. By default it spins for about a millisecond, which
is fast where every thread has a core, and keeps a core from the thread that is waited for where it has none. The
scripts let it give its core back soon (`engine.cores.thread_settings`). The third form has one thread, which waits for
nobody.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.multiprocessing as mp

from engine.cores import usable_cores
from evaluations.benchmarks.cases import OURS, Case, Measurable, Row, Target
from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.step_processes import StepProcesses

DEFAULT_WAITING = "threads that wait as by default"
ONE_THREAD = "one thread"
BATCH = 64
PROGRAMS_PER_CORE = (1, 4)  # others that compute all the time
START_SECONDS = 0.5  # until such programs run

# How threads wait: that of the scripts, and none of it (the default of the library).
SCRIPTS: dict[str, str | None] = {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "0"}
DEFAULT: dict[str, str | None] = dict.fromkeys(SCRIPTS)


def cases(size: str, device: torch.device) -> Iterator[Measurable]:
    """The rows, on a CPU with more than one core."""
    cores = usable_cores()
    if device.type != "cpu" or cores == 1:
        return
    forms = {
        OURS: StepProcesses(1, BATCH, cores, SCRIPTS).step,
        DEFAULT_WAITING: StepProcesses(1, BATCH, cores, DEFAULT).step,
        ONE_THREAD: StepProcesses(1, BATCH, 1, SCRIPTS).step,
    }

    # Idle cores: giving a core back must cost next to nothing.
    yield Case(
        f"training step, {cores} threads on idle cores",
        forms,
        against=DEFAULT_WAITING,
        target=Target("at most", 1.1),
        where_missed="it needs cores that nobody else uses",
    )

    # Busy cores: it must gain.
    for programs in PROGRAMS_PER_CORE:
        yield BesideOthers(
            Case(
                f"training step, {cores} threads beside {programs} other program(s) per core",
                forms,
                against=DEFAULT_WAITING,
                target=Target("at most", 1.0),
            ),
            cores * programs,
        )


@dataclass(frozen=True)
class BesideOthers:
    """A case that is measured while so many other programs compute."""

    case: Case
    programs: int

    @property
    def name(self) -> str:
        """That of the case."""
        return self.case.name

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> Row:
        """Measures, and ends the other programs."""
        with _other_programs(self.programs):
            return self.case.measure(repetitions, limits, device)


@contextlib.contextmanager
def _other_programs(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    context = mp.get_context("spawn")
    programs = [context.Process(target=_compute, daemon=True) for _ in range(count)]
    for program in programs:
        program.start()
    time.sleep(START_SECONDS)
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.join()


def _compute() -> None:
    number = 0
    while True:
        number = (number * 31 + 7) % 1_000_003
