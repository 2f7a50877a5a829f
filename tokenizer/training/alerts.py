"""Alerts raised while a tokenizer trains, computed from consecutive records; see `engine.alerts`."""

from __future__ import annotations

import math

from engine import alerts
from engine.alerts import Alert, Record
from tokenizer.training.task import CLIPPED_ABOVE

# Of the discriminator: below this the hinge is saturated, and the tokenizer gets almost no gradient from it.
SATURATED_LOSS = 0.2
# Of output pixels beyond +-CLIPPED_ABOVE. Overshoot at edges alone stays below.
MAX_CLIPPED_FRACTION = 0.05


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
    if max(previous_loss, loss) < SATURATED_LOSS:
        return f"discriminator loss {loss:.3g}: it wins everywhere"
    return None


def _clipped_output(now: Record, before: Record) -> str | None:
    """Many pixels are cut when images become uint8."""
    fraction = now.get("val/clipped_share", 0.0)
    if fraction > MAX_CLIPPED_FRACTION:
        return f"{fraction:.1%} of the output lies outside [-{CLIPPED_ABOVE}, {CLIPPED_ABOVE}]"
    return None


ALERTS: dict[str, Alert] = {
    **alerts.ALERTS,
    "codebook collapse": _codebook_collapse,
    "overpowering discriminator": _overpowering_discriminator,
    "clipped output": _clipped_output,
}
