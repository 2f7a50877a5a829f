"""Generation in passes (MaskGIT, arXiv:2202.04200): how many indices of an image are still masked after each pass.

An image has S slots: one index of one token each. At first all are masked. Pass t of T (from 0) draws every masked slot
and then masks those again in whose index it trusts least, so that n_{t+1} are left:

    n_{t+1} = max(T - t - 1, min(n_t - 1, floor(S share((t + 1) / T))))

Every pass reveals one slot or more, and the last one all that are left. (The released code has 1 in the place of
T - t - 1, which is the same for its schedules, up to rounding.) The trust in an index of probability p is
log p + tau (1 - (t + 1) / T) g, with a number g of the standard Gumbel distribution and `choice_temperature` tau: early
passes choose almost at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral

from engine.messages import ConfigError
from engine.validation import Problem, Section, at_least, is_number, one_of

DEFAULT_PASSES = 8
DEFAULT_CHOICE_TEMPERATURE = 4.5  # the published one of MaskGIT


@dataclass(frozen=True)
class MaskSchedule:
    """A falling function of [0, 1] onto [0, 1], with its inverse."""

    share: Callable[[float], float]
    inverse: Callable[[float], float]


def _cosine(x: float) -> float:
    return math.cos(math.pi * x / 2)


def _arccos(x: float) -> float:
    return math.acos(x) / (math.pi / 2)


def _linear(x: float) -> float:
    return 1 - x


MASK_SCHEDULES: dict[str, MaskSchedule] = {
    "cosine": MaskSchedule(_cosine, _arccos),  # MaskGIT
    "arccos": MaskSchedule(_arccos, _cosine),  # TiTok's generators
    "linear": MaskSchedule(_linear, _linear),
}


@dataclass(kw_only=True, slots=True, frozen=True)
class Passes(Section):
    """The settings of a generation in passes; see the module docstring.

    What is None is as the generator does by itself: `completed` fills it in, before the methods are called.
    """

    count: int | None = None
    choice_temperature: float | None = None  # tau; 0 = always the most probable indices stay
    schedule: str | None = None

    def problems(self) -> Iterator[Problem]:
        if self.count is not None and not (is_number(self.count) and isinstance(self.count, Integral)):
            yield Problem("count", self.count, "a whole number, 1 or more")
        elif self.count is not None:
            yield from at_least(self, "count", 1)
        tau = self.choice_temperature
        if tau is not None and not (is_number(tau) and 0 <= tau < math.inf):
            yield Problem("choice_temperature", tau, "0 or more and finite")
        if self.schedule is not None:
            yield from one_of(self, "schedule", MASK_SCHEDULES)

    def completed(self, slots: int, schedule: str) -> Passes:
        """With what is None as a generator of images of `slots` slots does, which was trained with `schedule`.

        Raises ConfigError where there are more passes than slots.
        """
        count = min(DEFAULT_PASSES, slots) if self.count is None else self.count
        if count > slots:
            raise ConfigError(f"{count} passes: an image has {slots} indices, and each pass reveals one or more")
        tau = DEFAULT_CHOICE_TEMPERATURE if self.choice_temperature is None else self.choice_temperature
        return Passes(count=count, choice_temperature=tau, schedule=self.schedule or schedule)

    def masked_after(self, slots: int) -> list[int]:
        """How many of `slots` are masked after each pass; 0 at the end."""
        share = MASK_SCHEDULES[self.schedule].share
        masked, counts = slots, []
        for number in range(1, self.count):
            masked = max(self.count - number, min(masked - 1, math.floor(slots * share(number / self.count))))
            counts.append(masked)
        return [*counts, 0]

    def noise_scale(self, number: int) -> float:
        """What the Gumbel numbers of pass `number` (from 0) are multiplied by; 0 in the last pass."""
        return self.choice_temperature * (1 - (number + 1) / self.count)
