"""Alerts raised while training, computed from consecutive metric records.

An alert is a function of a record and of the record of the same kind before it (empty at first); it returns a text, or
None while all is well. `ALERTS` holds those that any run can raise. A kind of network adds its own beside it, for
example `tokenizer/training/alerts.py`; `engine.run_log.Run` writes them to the log. `evaluations/doctor` looks at a
whole run instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Record = Mapping[str, float]  # metric name -> value
Alert = Callable[[Record, Record], str | None]  # (record, record before it) -> text


def _not_finite(now: Record, before: Record) -> str | None:
    """Names the first metric that is NaN or infinite."""
    for name, value in now.items():
        if not math.isfinite(value):
            return f"{name} is not finite"
    return None


def _rising(name: str, what: str) -> Alert:
    """An alert while the counter `name` rises; `what` says what it counts."""

    def alert(now: Record, before: Record) -> str | None:
        increase = now.get(name, 0.0) - before.get(name, 0.0)
        return f"{increase:.0f} {what} since the last record" if increase > 0 else None

    return alert


ALERTS: dict[str, Alert] = {
    "non-finite": _not_finite,
    "skipped steps": _rising("skipped_steps", "updates skipped for a non-finite gradient"),
    "broken images": _rising("skipped_images", "unreadable images replaced"),
    "non-finite features": _rising("nonfinite_batches", "batches with features that are not finite"),
}


def alerts_for(now: Record, before: Record, alerts: Mapping[str, Alert] = ALERTS) -> list[str]:
    """Returns one line for each alert that a record raises, given the record of the same kind before it."""
    lines = []
    for name, alert in alerts.items():
        text = alert(now, before)
        if text is not None:
            lines.append(f"warning: {name}: {text}")
    return lines
