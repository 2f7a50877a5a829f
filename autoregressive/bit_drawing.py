"""How the bits of a token are drawn (BAR, arXiv:2602.09024), as a sampler is asked for it.

A token of b bits is drawn in S steps. At first all bits are masked. Step j of S (from 0) draws every masked bit, and
masks those again that it does not keep, so that a_j more bits are known:

    a_0 + ... + a_{S-1} = b                       `allocation`
    T (1 - j / S), as released, or T              `temperature`: falling | constant
    those that the head trusts most, or the first `order`: confidence | fixed

Bits of one step are independent: fewer steps are a coarser distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral

from engine.messages import ConfigError
from engine.validation import Problem, Section, is_number, one_of

BIT_ORDERS = ("confidence", "fixed")
BIT_TEMPERATURES = ("falling", "constant")


@dataclass(kw_only=True, slots=True, frozen=True)
class BitDrawing(Section):
    """See the module docstring. What is None is as the generator does by itself: `completed` fills it in, before the
    methods are called.
    """

    allocation: tuple[int, ...] | None = None  # bits of each step; one number: so many in every step
    order: str | None = None
    temperature: str | None = None

    def problems(self) -> Iterator[Problem]:
        if self.allocation is not None:
            are_counts = isinstance(self.allocation, tuple) and all(
                is_number(count) and isinstance(count, Integral) and count >= 1 for count in self.allocation
            )
            if not are_counts or not self.allocation:
                yield Problem("allocation", self.allocation, "whole numbers of 1 or more, one per step")
        if self.order is not None:
            yield from one_of(self, "order", BIT_ORDERS)
        if self.temperature is not None:
            yield from one_of(self, "temperature", BIT_TEMPERATURES)

    def completed(self, usual: BitDrawing) -> BitDrawing:
        """With what is None as in `usual`, the complete settings of a generator.

        Raises ConfigError where the steps do not add up to the bits of a token.
        """
        bits = sum(usual.allocation)
        allocation = self.allocation or usual.allocation
        if len(allocation) == 1 and bits % allocation[0] == 0:
            allocation *= bits // allocation[0]
        if sum(allocation) != bits:
            given = ",".join(map(str, allocation))
            raise ConfigError(
                f"bits in steps of {given}: a token has {bits}; give numbers whose sum is {bits}, such as "
                f"{','.join(map(str, usual.allocation))}, or one that divides it"
            )
        return BitDrawing(
            allocation=allocation, order=self.order or usual.order, temperature=self.temperature or usual.temperature
        )

    @property
    def num_steps(self) -> int:
        return len(self.allocation)

    def known_after(self) -> list[int]:
        """How many bits are known after each step."""
        return list(accumulate(self.allocation))

    def temperature_of(self, step: int, temperature: float) -> float:
        """The temperature of a step, from 0, where that of the sampler is `temperature`."""
        falling = 1 - step / self.num_steps if self.temperature == "falling" else 1.0
        return temperature * falling
