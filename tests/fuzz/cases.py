"""What every fuzz has: the flags that choose its cases, and a limit of time for each."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class TooLong(BaseException):
    """The time limit; no handler of `Exception` takes it."""


@contextlib.contextmanager
def time_limit(clock: float, work: float | None = None) -> Iterator[None]:
    """Raises TooLong after `clock` seconds on the clock, or after `work` seconds of work of this process."""

    def stop(*_: Any) -> None:
        raise TooLong

    limits = {signal.SIGALRM: (signal.ITIMER_REAL, clock)}
    if work is not None:
        limits[signal.SIGPROF] = (signal.ITIMER_PROF, work)
    before = {number: signal.signal(number, stop) for number in limits}
    for timer, seconds in limits.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _ in limits.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def case_parser(description: str, count: int, noun: str) -> argparse.ArgumentParser:
    """The flags that choose cases: the first `--count` of a seed, or one alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count, help=f"number of {noun}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone, with what it says")
    return parser
