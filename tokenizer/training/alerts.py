"""Signs of trouble in single records of a tokenizer's training, beside those that any run can show."""

from __future__ import annotations

import math

from engine import alerts
from engine.alerts import Alert, Record

STRONG = 0.2  # discriminator loss (1 = undecided) below: nearly all logits are beyond their margins, gradients vanish


CLIPPED = 0.05  # share of output pixels outside [-1.05, 1.05]; overshoot at edges is below


def _collapse(now: Record, before: Record) -> str | None:
    names = [n for n in now if n == "codebook_perplexity" or n.startswith("codebook_usage_group_")]
    fell = [f"{n} fell from {before[n]:.4g} to {now[n]:.4g}" for n in names if now[n] < 0.5 * before.get(n, 0.0)]
    return fell[0] if fell else None  # the window moves slowly: half is much between two records


def _strong(now: Record, before: Record) -> str | None:
    losses = [r.get("discriminator", math.inf) for r in (before, now)]
    return f"discriminator loss {losses[1]:.3g}: it wins everywhere" if max(losses) < STRONG else None


def _clipped(now: Record, before: Record) -> str | None:
    share = now.get("val/clipped_share", 0.0)
    return f"{share:.1%} of the output lies outside [-1.05, 1.05]" if share > CLIPPED else None


ALERTS: dict[str, Alert] = {
    **alerts.ALERTS,
    "codebook collapse": _collapse,
    "overpowering discriminator": _strong,
    "clipped output": _clipped,
}
