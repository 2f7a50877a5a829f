"""Signs of trouble in single records of training, by the names of the metrics: said in the log while a run goes on.

Each sign is a function of a record and of the one before it. Those that any run can show stand here, those of a kind of
network beside it; `evaluations/doctor.py` looks at a whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Record = Mapping[str, float]


Alert = Callable[[Record, Record], str | None]


def _not_finite(now: Record, before: Record) -> str | None:
    bad = [name for name, value in now.items() if not math.isfinite(value)]
    return f"{bad[0]} is not finite" if bad else None


def _more(name: str, what: str) -> Alert:
    def sign(now: Record, before: Record) -> str | None:
        new = now.get(name, 0.0) - before.get(name, 0.0)
        return f"{new:.0f} {what} since the last record" if new > 0 else None

    return sign


ALERTS: dict[str, Alert] = {
    "non-finite": _not_finite,
    "skipped steps": _more("skipped_steps", "updates skipped for a non-finite gradient"),
    "broken images": _more("skipped_images", "unreadable images replaced"),
}


def alerts_for(now: Record, before: Record, signs: Mapping[str, Alert] = ALERTS) -> list[str]:
    """One line for each sign that a record shows, given the record of the same kind before it (or an empty one)."""
    found = ((name, sign(now, before)) for name, sign in signs.items())
    return [f"warning: {name}: {text}" for name, text in found if text is not None]
