"""Names that somebody may have meant: close to what was typed, or the same in other letters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_SUGGESTIONS = 3
CUTOFF = 0.6  # likeness of two names, from 0 to 1, from which on one may be meant by the other


def near_names(name: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that look like `name`, the nearest first; small and capital letters are the same."""
    by_lower: dict[str, str] = {}
    for other in names:
        by_lower.setdefault(other.lower(), other)
    near = difflib.get_close_matches(name.lower(), by_lower, n=MAX_SUGGESTIONS, cutoff=CUTOFF)
    return [by_lower[other] for other in near]


def did_you_mean(names: Iterable[str]) -> str:
    """The end of a message that suggests names; empty without any."""
    text = " or ".join(names)
    return f"; did you mean {text}?" if text else ""
