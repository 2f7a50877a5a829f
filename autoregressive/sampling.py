"""From logits to a token: temperature, top-k, top-p, and random numbers that belong to a sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Draw = Callable[[Tensor, int], Tensor]  # (probabilities (B,V), position) -> indices (B,); a token of k has k positions


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (B,V) with all but the `top_k` largest (ties stay; 0 = all), then all outside the `top_p` nucleus, at
    -inf.

    The nucleus ends with the first token whose cumulative probability exceeds `top_p`; that token stays.
    """
    if top_k > 0:
        smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (B,V) -> the distribution (B,V) that a token is drawn from."""
    return filter_logits(logits / max(temperature, 1e-5), top_k, top_p).softmax(-1)


def greedy(p: Tensor, position: int) -> Tensor:
    """The most probable token."""
    return p.argmax(-1)


def seeded_draw(seed: int, sample_ids: Tensor, num_tokens: int) -> Draw:
    """Draws by inverse transform with one uniform number per (seed, sample, position); `sample_ids` (B,) int64."""
    rows = [
        np.random.Generator(np.random.Philox(key=[seed, 0xD1CE], counter=[0, 0, 0, int(i)])).random(num_tokens)
        for i in sample_ids
    ]
    uniform = torch.from_numpy(np.stack(rows))

    def draw(p: Tensor, position: int) -> Tensor:
        cumulative = p.double().cumsum(-1)
        target = uniform[:, position : position + 1].to(p.device) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(p.shape[-1] - 1)

    return draw
