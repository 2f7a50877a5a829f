"""Compares an exported file with the network that it was made of, before the file gets its name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autoregressive.exporting.parts import CodeComparison, Pairs, Part, Run
from engine.messages import UserError

MAX_ORACLE_DIFFERENCE = 1e-3  # of another way to compute the same: all tokens at once instead of one after the other


@dataclass(frozen=True)
class Tolerance:
    """How far a file may be from its network."""

    values: float  # largest difference of a real number, such as a pixel in [-1,1]
    ties: float  # a code may be another one only where both are as near to the latent, up to this distance
    equal_codes: float = 0.999  # fraction of tokens whose codes must be equal


@dataclass
class _Measured:
    """What was found so far."""

    batches: list[int] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    oracle_differences: dict[str, float] = field(default_factory=dict)
    num_tokens: int = 0
    num_different: int = 0
    largest_gap: float = 0.0  # of the tokens that differ

    def add_codes(self, codes: CodeComparison) -> None:
        self.num_tokens += codes.differs.numel()
        gaps = codes.gaps[codes.differs]
        self.num_different += len(gaps)
        if len(gaps) > 0:
            self.largest_gap = _larger(self.largest_gap, float(gaps.abs().max()))

    def facts(self) -> dict[str, Any]:
        """For the JSON beside the file."""
        facts: dict[str, Any] = {"batches": self.batches}
        if self.differences:
            facts["largest_difference"] = self.differences
        if self.oracle_differences:
            facts["largest_difference_from_all_tokens_at_once"] = self.oracle_differences
        if self.num_tokens:
            facts["tokens"] = self.num_tokens
            facts["tokens_with_other_codes"] = self.num_different
            facts["largest_gap_of_their_distances"] = self.largest_gap
        return facts

    def problems(self, tolerance: Tolerance) -> Iterator[str]:
        """What is out of tolerance. A difference that is NaN is."""
        # Numbers.
        for name, difference in self.differences.items():
            if not difference <= tolerance.values:
                yield f"{name} differ by up to {difference:.2g}; accepted are {tolerance.values:g}"
        for name, difference in self.oracle_differences.items():
            if not difference <= MAX_ORACLE_DIFFERENCE:
                yield f"{name} differ by up to {difference:.2g} from a pass over all tokens at once"

        # Codes.
        if self.num_different > (1 - tolerance.equal_codes) * self.num_tokens:
            yield (
                f"{self.num_different} of {self.num_tokens} tokens have other codes; accepted are "
                f"{1 - tolerance.equal_codes:.1%}"
            )
        if not self.largest_gap <= tolerance.ties:
            yield (
                f"a code is farther from its latent than the network's choice by {self.largest_gap:.2g}; accepted are "
                f"near ties, up to {tolerance.ties:g}"
            )


@torch.no_grad()
def verify(part: Part, run: Run, tolerance: Tolerance) -> dict[str, Any]:
    """What was measured of a file that `run` calls, for people and for the JSON beside it.

    Raises UserError where anything is out of tolerance.
    """
    measured = _Measured()
    for comparison in part.compare(run):
        if not measured.batches or measured.batches[-1] != comparison.rows:
            measured.batches.append(comparison.rows)
        _widen(measured.differences, comparison.values)
        _widen(measured.oracle_differences, comparison.oracle or {})
        if comparison.codes is not None:
            measured.add_codes(comparison.codes)

    problems = list(measured.problems(tolerance))
    if problems:
        lines = ["the exported file does not give what the network gives, and is not kept:", *problems]
        raise UserError("\n  ".join(lines))
    return measured.facts()


def _widen(largest: dict[str, float], pairs: Pairs) -> None:
    """Adds the differences of one batch to the largest ones so far."""
    for name, (expected, found) in pairs.items():
        largest[name] = _larger(largest.get(name, 0.0), largest_difference(expected, found))


def _larger(first: float, second: float) -> float:
    """The larger of two numbers; NaN where one of them is."""
    return second if math.isnan(second) or second > first else first


def largest_difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two tensors; of equal infinities 0, of other shapes infinite, of a lone NaN NaN."""
    if expected.shape != found.shape:
        return math.inf
    differences = (expected.double() - found.double()).abs()
    return float(differences.masked_fill(expected == found, 0.0).max())
