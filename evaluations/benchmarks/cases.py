"""The rows of the benchmark: what is measured, what is asked of it, and how its numbers are read.

A `Case` compares forms of the same work: ours and others, which run in turns. A `Reading` is one number that is no
comparison, such as a count or a time that a target bounds directly. Both give a row: plain values for JSON.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.timing import Form, added_memory, time_in_turns

OURS = "ours"  # the name of our form in every case
ALLOWED = "allowed"  # in the memory of a row: what its target allows, where the other form holds nothing
Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """What a number has to reach."""

    kind: Literal["at most", "at least"]
    value: float

    def reached(self, number: float) -> bool:
        """Whether `number` is good enough."""
        return number <= self.value if self.kind == "at most" else number >= self.value

    def text(self) -> str:
        """For people: `at most 0.15`."""
        return f"{self.kind} {self.value:.3g}"


class Measurable(Protocol):
    """What a topic yields."""

    name: str  # unique in the benchmark: results are compared by it

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> Row:
        """Measures, and returns the row."""


@dataclass(frozen=True)
class Case:
    """Forms of the same work.

    The ratio is our time over that of the form `against` where the target is an `at most`, and the other way round (a
    gain) where it is an `at least`; so is the ratio of memory. Without a target it is ours over the other.
    """

    name: str
    forms: Mapping[str, Form]  # OURS and others
    against: str  # the form that ours is measured against
    target: Target | None = None  # of the ratio of times
    memory_target: Target | None = None  # of the ratio of memory; None = memory is not measured
    memory_of: Callable[[Form, torch.device], float | None] = added_memory  # how memory is measured
    least_work: Mapping[str, float] = field(default_factory=dict)  # limit (a field of `Limits`) -> amount
    limit_target: Target | None = None  # of the share of the machine's limit
    facts: Mapping[str, Any] = field(default_factory=dict)  # what else a reader should know, such as a difference
    where_missed: str = ""  # why a target can be missed, for the page

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> Row:
        # Time, in turns.
        timings = time_in_turns(self.forms, repetitions, device)
        seconds = {name: timing.median for name, timing in timings.items()}
        row: Row = {
            "name": self.name,
            "seconds": seconds,
            "spread": max(timing.spread for timing in timings.values()),
            "against": self.against,
            "time": compared(self.target, seconds[OURS], seconds[self.against]),
            "facts": dict(self.facts),
            "where_missed": self.where_missed,
        }

        # As a share of the machine's limit: work of different kinds is done one after the other.
        if self.least_work:
            least = sum(limits.seconds(kind, amount) for kind, amount in self.least_work.items())
            row["share_of_limit"] = judged(self.limit_target, least / seconds[OURS])

        # Memory, of one run of each.
        if self.memory_target is not None:
            added = {name: self.memory_of(self.forms[name], device) for name in (OURS, self.against)}
            row["mib"] = added
            if None not in added.values():
                # What a page or two of the allocator take is no memory of the form.
                ours, other = (max(1.0, mib) for mib in added.values())
                row["memory"] = compared(self.memory_target, ours, other)
        return row


@dataclass(frozen=True)
class Reading:
    """One number with a unit, read several times; the median counts."""

    name: str
    unit: str
    read: Callable[[], float]
    target: Target | None = None
    repeats: bool = True  # False: one reading is enough, as for a count
    facts: Mapping[str, Any] = field(default_factory=dict)
    where_missed: str = ""

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> Row:
        values = [self.read() for _ in range(repetitions if self.repeats else 1)]
        return {
            "name": self.name,
            "unit": self.unit,
            "reading": judged(self.target, statistics.median(values)),
            "spread": (max(values) - min(values)) / max(statistics.median(values), 1e-12),
            "facts": dict(self.facts),
            "where_missed": self.where_missed,
        }


def compared(target: Target | None, ours: float, other: float) -> Row:
    """The ratio of two numbers in the direction of a target, and whether it is reached."""
    is_gain = target is not None and target.kind == "at least"
    return judged(target, other / ours if is_gain else ours / other)


def judged(target: Target | None, value: float) -> Row:
    """A number, and where there is a target, whether it is reached."""
    if target is None:
        return {"value": value}
    return {"value": value, "target": target.text(), "reached": target.reached(value)}
