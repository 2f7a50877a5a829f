"""Work in a forked process of its own, whose memory is measured apart from that of this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

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
