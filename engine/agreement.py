"""When the processes of a run ask each other whether to stop.

A stop signal may reach one process alone, but all must stop after the same step. To ask is a collective, for which a
GPU is waited for, so it is not done in every step: at the latest after `STOP_STEPS` steps, and earlier where these
would take longer than `STOP_SECONDS`. A single process has nobody to ask, and stops at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from engine.world import World

STOP_STEPS = 16
STOP_SECONDS = 30.0


class StopAgreement:
    """The question and when it is due; both are the same on all ranks. `clock` gives seconds."""

    def __init__(self, world: World, clock: Callable[[], float] = time.monotonic) -> None:
        self.world = world
        self.clock = clock
        self._steps = 0  # since the last question
        self._interval = 1  # steps from one question to the next; at first nobody knows how long a step takes
        self._since = clock()

    @property
    def note(self) -> str:
        """What the main process says when it gets a stop signal."""
        when = "after this step" if self.world.size == 1 else "within a few steps"
        text = f"the run stops {when} and saves; Ctrl-C a second time ends it at once"
        return text if self.world.is_main else ""

    def is_due(self) -> bool:
        """Counts a step; whether all ranks ask after it."""
        self._steps += 1
        return self.world.size == 1 or self._steps >= self._interval

    def ask(self, wants_stop: bool) -> bool:
        """Whether any rank wants to stop: the same answer on all of them. A collective."""
        if self.world.size == 1:
            return wants_stop

        # The slowest rank decides how many steps fit into the time until the next question.
        now = self.clock()
        seconds_per_step = (now - self._since) / max(1, self._steps)
        answer = torch.tensor([[float(wants_stop), seconds_per_step]], device=self.world.device)
        any_stop, slowest = self.world.gather_rows(answer).amax(0).tolist()
        self._interval = steps_between(slowest)
        self._steps = 0
        self._since = now
        return any_stop > 0


def steps_between(seconds_per_step: float) -> int:
    """How many steps may pass until the next question: 1 to `STOP_STEPS`."""
    steps_in_time = int(STOP_SECONDS / max(seconds_per_step, STOP_SECONDS / STOP_STEPS))
    return max(1, steps_in_time)
