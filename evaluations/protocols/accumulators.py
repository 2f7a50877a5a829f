"""One interface for everything that an evaluation measures batch by batch, and the loop over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from engine.world import World

B = TypeVar("B")


@dataclass
class Measurement:
    """What was measured, in the order of the result file."""

    metrics: dict[str, Any] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)  # metric -> why it is missing
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # beside the result, for reports

    def add(self, other: Measurement) -> None:
        """Appends what else was measured."""
        self.metrics |= other.metrics
        self.unavailable |= other.unavailable
        self.arrays |= other.arrays


class Accumulator(Generic[B]):
    """Something that is measured over all batches of an evaluation.

    `update` sees each batch of this rank once. `result` comes after the last batch; it is a collective, so every rank
    calls it, and returns the numbers over the images of all ranks. Only the main rank's are written.
    """

    def update(self, batch: B) -> None:
        raise NotImplementedError

    def result(self, world: World) -> Measurement:
        raise NotImplementedError


def measure(batches: Iterable[B], accumulators: Sequence[Accumulator[B]], world: World) -> Measurement:
    """Shows every batch to every accumulator, then joins their results in the order of the accumulators."""
    for batch in batches:
        for accumulator in accumulators:
            accumulator.update(batch)

    total = Measurement()
    for accumulator in accumulators:
        total.add(accumulator.result(world))
    return total
