"""The processes of a training: as `engine.world.distributed_world`, with what only a training needs.

Threads of one operation wait for each other. Where another program holds one of their cores, all of them wait for the
slowest, and a step with two threads can take several times as long as one with a single thread. But the number of
threads changes the order of sums, and with it the last bits of a run: it must not follow the load, or the same command
would give other weights on another day. So a training takes all cores however busy they are; where others use them, the
first line of the log says which OMP_NUM_THREADS may be faster. That variable decides where it is set. A run that goes
on takes the number that it began with, which `starts.jsonl` has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from engine.checkpoint.manifest import phase_folders
from engine.cores import busy_cores, usable_cores
from engine.loop import LoopConfig
from engine.run_log import read_lines
from engine.world import ThreadChoice, World, distributed_world


@contextmanager
def training_world(loop: LoopConfig) -> Iterator[World]:
    """Joins the processes of a training.

    On a GPU, cuDNN tries its algorithms for the fixed shapes of a training and takes the fastest, unless the run is
    deterministic. Raises ConfigError if the device is not there.
    """
    with distributed_world(
        loop.device,
        loop.deterministic,
        precision=loop.precision,
        autotune=not loop.deterministic,
        choose_threads=lambda: choose_threads(loop.run_dir),
    ) as world:
        yield world


def choose_threads(run_dir: str | Path) -> ThreadChoice:
    """The threads for a training of a single process on CPUs in the folder `run_dir`, and what a user should know."""
    if "OMP_NUM_THREADS" in os.environ:
        return ThreadChoice(torch.get_num_threads())

    # A run that goes on. On a machine with fewer cores its bits differ anyway.
    usable = min(torch.get_num_threads(), usable_cores())
    begun_with = _threads_of(Path(run_dir))
    threads = usable if begun_with is None else min(begun_with, usable)

    # Advice, where others use the cores.
    busy = busy_cores() if threads > 1 else None
    free = threads if busy is None else max(1, round(len(os.sched_getaffinity(0)) - busy))
    if free >= threads:
        return ThreadChoice(threads)
    return ThreadChoice(
        threads, f"others keep {busy:.1f} cores busy: a new run with OMP_NUM_THREADS={free} may be faster"
    )


def _threads_of(run_dir: Path) -> int | None:
    """The threads of the newest start of a run, or of its newest phase; None where there was no start on a CPU."""
    for folder in [*reversed(phase_folders(run_dir)), run_dir]:
        for record in reversed(read_lines(folder / "starts.jsonl")):
            threads = record.get("device", {}).get("threads")
            if isinstance(threads, int) and threads > 0:
                return threads
    return None
