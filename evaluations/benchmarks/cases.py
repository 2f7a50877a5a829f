"""A case of the benchmark: forms of the same work, what is asked of ours, and how its numbers are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.timing import Form, added_memory, time_in_turns

OURS = "ours"  # the name of our form in every case


@dataclass(frozen=True)
class Target:
    """What the ratio of a case has to reach."""

    kind: Literal["at most", "at least"]
    value: float

    def reached(self, ratio: float) -> bool:
        """Whether `ratio` is good enough."""
        return ratio <= self.value if self.kind == "at most" else ratio >= self.value


@dataclass(frozen=True)
class Case:
    """Forms of the same work.

    The ratio is our time over that of the form `against` where the target is an `at most`, and the other way round (a
    gain) where it is an `at least`; so is the ratio of memory.
    """

    name: str
    forms: Mapping[str, Form]  # OURS and others
    against: str  # the form that ours is measured against
    target: Target | None = None  # of the time
    memory_target: Target | None = None  # of the memory; None = memory is not measured
    least_work: Mapping[str, float] = field(default_factory=dict)  # limit (a field of `Limits`) -> amount
    facts: Mapping[str, Any] = field(default_factory=dict)  # what else a reader should know, such as a difference

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> dict[str, Any]:
        """The numbers of this case, for the JSON file and the page."""
        timings = time_in_turns(self.forms, repetitions, device)
        seconds = {name: timing.median for name, timing in timings.items()}
        result: dict[str, Any] = {
            "name": self.name,
            "seconds": seconds,
            "spread": max(timing.spread for timing in timings.values()),
            "against": self.against,
            **_compared(self.target, seconds[OURS], seconds[self.against]),
            "facts": dict(self.facts),
        }

        # As a share of the machine's limit: work of different kinds is done one after the other.
        if self.least_work:
            least = sum(limits.seconds(kind, amount) for kind, amount in self.least_work.items())
            result["share_of_limit"] = least / seconds[OURS]

        if self.memory_target is not None:
            added = {name: added_memory(self.forms[name], device) for name in (OURS, self.against)}
            result["memory"] = {"mib": added}
            if None not in added.values():
                # What a page or two of the allocator take is no memory of the form.
                result["memory"] |= _compared(self.memory_target, max(1.0, added[OURS]), max(1.0, added[self.against]))
        return result


def _compared(target: Target | None, ours: float, other: float) -> dict[str, Any]:
    """The ratio of two numbers in the direction of a target, and whether it is reached."""
    ratio = other / ours if target is not None and target.kind == "at least" else ours / other
    compared: dict[str, Any] = {"ratio": ratio}
    if target is not None:
        compared["target"] = f"{target.kind} {target.value:g}"
        compared["reached"] = target.reached(ratio)
    return compared
