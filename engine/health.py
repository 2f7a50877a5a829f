"""Signs of trouble in single records of training, by the names of the metrics: said in the log while a run goes on.

Each sign is a function of a record and of the one before it; `evaluations/doctor.py` looks at a whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

Record = Mapping[str, float]
STRONG = 0.2  # discriminator loss (1 = undecided) below: nearly all logits are beyond their margins, gradients vanish
CLIPPED = 0.05  # share of output pixels outside [-1.05, 1.05]; overshoot at edges is below


def _not_finite(now: Record, before: Record) -> str | None:
    bad = [name for name, value in now.items() if not math.isfinite(value)]
    return f"{bad[0]} is not finite" if bad else None


def _more(name: str, what: str) -> Callable[[Record, Record], str | None]:
    def sign(now: Record, before: Record) -> str | None:
        new = now.get(name, 0.0) - before.get(name, 0.0)
        return f"{new:.0f} {what} since the last record" if new > 0 else None

    return sign


def _collapse(now: Record, before: Record) -> str | None:
    new, old = now.get("codebook_perplexity"), before.get("codebook_perplexity")
    if new is None or old is None or new >= 0.5 * old:  # the window moves slowly: half is much between two records
        return None
    return f"codebook_perplexity fell from {old:.4g} to {new:.4g}"


def _strong(now: Record, before: Record) -> str | None:
    losses = [r.get("discriminator", math.inf) for r in (before, now)]
    return f"discriminator loss {losses[1]:.3g}: it wins everywhere" if max(losses) < STRONG else None


def _clipped(now: Record, before: Record) -> str | None:
    share = now.get("val/clipped_share", 0.0)
    return f"{share:.1%} of the output lies outside [-1, 1]" if share > CLIPPED else None


SIGNS: dict[str, Callable[[Record, Record], str | None]] = {
    "non-finite": _not_finite,
    "skipped steps": _more("skipped_steps", "updates skipped for a non-finite gradient"),
    "broken images": _more("skipped_images", "unreadable images replaced"),
    "codebook collapse": _collapse,
    "overpowering discriminator": _strong,
    "clipped output": _clipped,
}


def warnings_of(now: Record, before: Record) -> list[str]:
    """One line for each sign that a record shows, given the record of the same kind before it (or an empty one)."""
    found = ((name, sign(now, before)) for name, sign in SIGNS.items())
    return [f"warning: {name}: {text}" for name, text in found if text is not None]
