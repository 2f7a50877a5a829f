"""Alerts raised while a tokenizer trains, computed from consecutive records; see `engine.alerts`."""

from __future__ import annotations

import math

from engine import alerts
from engine.alerts import Alert, Record

STRONG = (
    0.2  # a discriminator loss below this: the hinge is saturated, and the tokenizer gets almost no gradient from it
)
CLIPPED = 0.05  # a larger fraction of output pixels beyond +-1.05; overshoot at edges alone stays below


def _codebook_collapse(now: Record, before: Record) -> str | None:
    """A perplexity, or the usage of a group, halved: the window of usage moves slowly, so that is much."""
    for name, value in now.items():
        describes_codebook = name == "codebook_perplexity" or name.startswith("codebook_usage_group_")
        if describes_codebook and value < 0.5 * before.get(name, 0.0):
            return f"{name} fell from {before[name]:.4g} to {value:.4g}"
    return None


def _overpowering_discriminator(now: Record, before: Record) -> str | None:
    """In two records: the hinge loss is far below 1, its value for a discriminator that cannot decide."""
    previous_loss = before.get("discriminator", math.inf)
    loss = now.get("discriminator", math.inf)
    if max(previous_loss, loss) < STRONG:
        return f"discriminator loss {loss:.3g}: it wins everywhere"
    return None


def _clipped_output(now: Record, before: Record) -> str | None:
    """Many pixels are cut when images become uint8."""
    fraction = now.get("val/clipped_share", 0.0)
    if fraction > CLIPPED:
        return f"{fraction:.1%} of the output lies outside [-1.05, 1.05]"
    return None


ALERTS: dict[str, Alert] = {
    **alerts.ALERTS,
    "codebook collapse": _codebook_collapse,
    "overpowering discriminator": _overpowering_discriminator,
    "clipped output": _clipped_output,
}
