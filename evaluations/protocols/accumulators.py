"""One interface for everything that an evaluation measures batch by batch, and the loop over it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from engine.world import World
from evaluations.metrics.blocks import block_numbers
from evaluations.metrics.intervals import Estimate, of_images

B = TypeVar("B")


@dataclass
class Measurement:
    """What was measured, in the order of the result file."""

    metrics: dict[str, Any] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)  # metric -> why it is missing
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # beside the result, for reports
    errors: dict[str, Estimate] = field(default_factory=dict)  # of those metrics whose error is known
    definitions: dict[str, dict[str, Any]] = field(default_factory=dict)  # metric -> settings that it depends on

    def add(self, other: Measurement) -> None:
        """Takes what another one has."""
        self.metrics |= other.metrics
        self.unavailable |= other.unavailable
        self.arrays |= other.arrays
        self.errors |= other.errors
        self.definitions |= other.definitions

    def sections(self) -> dict[str, Any]:
        """What `evaluations.results.write_result` takes beside the metrics and the protocol."""
        return {"errors": self.errors, "unavailable": self.unavailable, "definitions": self.definitions}

    def add_estimate(self, name: str, estimate: Estimate, **definition: Any) -> None:
        """Takes a metric with its error, and what it depends on beside the facts of the protocol."""
        self.metrics[name] = estimate.value
        self.errors[name] = estimate
        if definition:
            self.definitions[name] = definition


def mean_of_images(names: Iterable[str], table: Tensor) -> Measurement:
    """The means of per-image values (metrics, count) float64, each row in the order of the image numbers.

    Their errors are sd/sqrt(count), where there are two images or more.
    """
    count = table.shape[1]
    measurement = Measurement(dict(zip(names, table.mean(1).tolist(), strict=True)))
    if count >= 2:
        blocks = block_numbers(count).numpy()
        for (name, mean), values in zip(measurement.metrics.items(), table, strict=True):
            measurement.errors[name] = of_images(values.numpy(), blocks).around(mean)
    return measurement


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
