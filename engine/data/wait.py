"""How much of a training waits for its data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class DataWait:
    """Which share of the time since the last restart the loop of a process stood waiting for a batch.

    On a GPU this is the time of the host, which prepares steps ahead: waiting that the GPU does not notice counts too,
    so that the share is an upper bound there.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts to measure anew, as after a validation."""
        self._start = time.perf_counter()
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts what happens inside as waiting."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def measure(self) -> float:
        """The share so far, from 0 to 1; measures anew from here."""
        elapsed = time.perf_counter() - self._start
        share = self._waited / elapsed if elapsed > 0 else 0.0
        self.restart()
        return min(share, 1.0)
