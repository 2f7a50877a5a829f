"""Signs of trouble in single records of a tokenizer's training, beside those that any run can show."""

from __future__ import annotations

import math

from engine import health
from engine.health import Record, Sign

STRONG = 0.2  # discriminator loss (1 = undecided) below: nearly all logits are beyond their margins, gradients vanish
CLIPPED = 0.05  # share of output pixels outside [-1.05, 1.05]; overshoot at edges is below


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


SIGNS: dict[str, Sign] = {
    **health.SIGNS,
    "codebook collapse": _collapse,
    "overpowering discriminator": _strong,
    "clipped output": _clipped,
}
