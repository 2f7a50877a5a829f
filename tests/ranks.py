"""Runs a function on several processes that form a gloo group, as torchrun would, in a fraction of its time."""

import functools
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from engine.world import distributed_world

TIMEOUT = 300  # seconds


def _rank(rank: int, size: int, folder: str, function: Callable, args: tuple) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    try:
        with distributed_world("cpu") as world:
            function(world, *args)
    finally:
        dist.destroy_process_group()


def on_ranks(size: int, folder: Path, function: Callable, *args) -> None:
    """`function(world, *args)` on `size` processes; an error in one of them is raised here."""
    folder.mkdir(parents=True, exist_ok=True)
    start = "spawn" if torch.cuda.is_available() else "fork"  # autograd and fork do not mix where there are GPUs
    given = (size, str(folder), function, args)
    processes = mp.start_processes(_rank, args=given, nprocs=size, start_method=start, join=False)
    end = time.monotonic() + TIMEOUT
    while not processes.join(timeout=1):
        if time.monotonic() > end:
            for process in processes.processes:
                process.kill()
            raise TimeoutError(f"{size} processes did not end in {TIMEOUT} s: they wait for each other")


def aside(test: Callable) -> Callable:
    """The test in a process of its own, so that what it registers, replaces or caches reaches no later test."""

    @functools.wraps(test)
    def run(*args, **fixtures):
        with tempfile.NamedTemporaryFile("r+") as report:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    test(*args, **fixtures)
                    code = 0
                except BaseException:
                    report.write(traceback.format_exc())
                    report.flush()
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            report.seek(0)  # the child, which has written, shares the position
            assert status == 0, report.read()

    return run
