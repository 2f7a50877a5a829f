"""Integer arithmetic that has a name in English but none in Python."""

from __future__ import annotations


def ceil_div(numerator: int, denominator: int) -> int:
    """Divides and rounds up, exactly for integers of any size."""
    return -(-numerator // denominator)
