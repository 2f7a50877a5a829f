"""Work in a forked process of its own, whose memory is measured apart from that of this one."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux alone
T = TypeVar("T")


def in_fork(work: Callable[[], T]) -> T:
    """What `work` returns, when a forked process has done it.

    Raises RuntimeError where that process ends without an answer: it was killed, as for lack of memory, or failed.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_answer, args=(work, sender))
    process.start()
    sender.close()  # the process holds the only one: where it ends, so does the wait for an answer
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError("a forked process ended without an answer") from error
    finally:
        process.join()


def _answer(work: Callable[[], T], sender: Connection) -> None:
    sender.send(work())


def added_here(work: Callable[[], object]) -> float:
    """The MiB that `work` adds at its peak to this process, a forked one (Linux)."""
    # A fork has no threads of OpenMP; and what autograd needs for itself is not the work's.
    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).exp().backward()

    # Memory that could be freed meanwhile, or was and is kept by the allocator, would serve the work unseen.
    gc.collect()
    with contextlib.suppress(AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)

    CLEAR_REFS.write_text("5")  # the high-water mark falls to what is held now
    held = process_mib("status", "VmRSS")
    work()
    return max(0.0, process_mib("status", "VmHWM") - held)


def process_mib(file: str, key: str) -> float:
    """What /proc/self/`file` says of this process in KiB, in MiB (Linux)."""
    lines = Path("/proc/self", file).read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values[key].split()[0]) / 1024
