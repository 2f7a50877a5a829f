"""How bad a symptom is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Severity(NamedTuple):
    """A reading as a multiple of its threshold, and the numbers behind it.

    Above 1 the symptom is reported.
    """

    ratio: float
    evidence: str


def worst(severities: Sequence[Severity]) -> Severity | None:
    """Joins several severities: the highest ratio, with the evidence of all above 1."""
    if not severities:
        return None
    highest = max(severities)
    reported = [severity.evidence for severity in severities if severity.ratio > 1]
    return Severity(highest.ratio, ", ".join(reported) or highest.evidence)
