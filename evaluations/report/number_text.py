"""Numbers as people read them in a column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from engine.config_types import format_value

DIGITS = 4  # of the largest number of a column
MAX_RATIO = 1e4  # of the largest to the smallest number of a column with equally many decimals
MAX_TEXT = 60  # characters of a value of a config


def fixed_texts(values: Sequence[float]) -> list[str]:
    """The numbers of a column with equally many decimals, so that 11.5 beside 13.25 is 11.50.

    The largest has `DIGITS` digits. Numbers of very different sizes, and very large or small ones, have their own.
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes or max(sizes) / min(sizes) > MAX_RATIO or not 1e-3 <= max(sizes) < 1e6:
        return [f"{value:.{DIGITS}g}" for value in values]
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(max(sizes))))
    texts = [f"{value:.{decimals}f}" for value in values]
    while decimals > 0 and all(text.endswith("0") for text in texts):  # zeros of all numbers say nothing
        decimals -= 1
        texts = [f"{value:.{decimals}f}" for value in values]
    return texts


def setting_text(value: Any) -> str:
    """A value of a config; small numbers as one types them: 5e-4."""
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:
            mantissa, exponent = f"{value:.5e}".split("e")
            return f"{float(mantissa):g}e{int(exponent)}"
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return (value if isinstance(value, str) else format_value(value))[:MAX_TEXT]
