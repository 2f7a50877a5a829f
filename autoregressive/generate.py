"""Sampling tokens from a generator: the public function `autoregressive.generate`."""

from __future__ import annotations

from torch import Tensor

from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.models.base import Generator
from autoregressive.sampling import Draw, PerIndex, require_settings
from engine.finite import FiniteCheck


def generate(
    generator: Generator,
    labels: Tensor,
    *,
    draw: Draw,
    guidance: Guidance = UNGUIDED,
    temperature: PerIndex[float] = 1.0,
    top_k: PerIndex[int] = 0,
    top_p: PerIndex[float] = 1.0,
) -> Tensor:
    """Draws tokens (B,N) or (B,N,k) int64 for class `labels` (B,) from a generator in evaluation mode.

    `draw` is `autoregressive.sampling.greedy`, or `seeded_draw(seed, sample_ids, generator.num_draws)`. Settings may be
    given once or per index of a token; see `Generator.sample`.

    Raises ConfigError for a setting out of range, and NonFiniteValuesError, with the rows, where logits were not
    finite: every draw notes that on the device, and it is read once, after the last one.
    """
    require_settings(temperature, top_k, top_p)
    check = FiniteCheck("logits of the generator")

    def checked_draw(p: Tensor, position: int) -> Tensor:
        check.note(p)
        return draw(p, position)

    tokens = generator.sample(
        labels, draw=checked_draw, guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p
    )
    check.require()
    return tokens
