"""How bad a symptom is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Severity(NamedTuple):
    """A reading as a multiple of its threshold (above 1 the symptom is reported), and the numbers behind it."""

    ratio: float
    evidence: str


def worst(severities: Sequence[Severity]) -> Severity | None:
    """One severity for several: the highest ratio, with the evidence of all that are above their thresholds."""
    if not severities:
        return None
    highest = max(severities)
    reported = [severity.evidence for severity in severities if severity.ratio > 1]
    return Severity(highest.ratio, ", ".join(reported) or highest.evidence)
