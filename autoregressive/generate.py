"""Sampling from a GPT: classifier-free guidance, temperature, top-k, top-p, and random numbers that belong to a sample.

The random number that picks token t of sample i depends only on (seed, i, t): neither on the batch it is generated in
nor on the number of processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.models.gpt import GPT
from autoregressive.models.kv_cache import KVCache
from autoregressive.sampling import Draw, probabilities
from engine.messages import ConfigError

T = TypeVar("T")


def per_index(value: T | tuple[T, ...], count: int, name: str) -> tuple[T, ...]:
    """A setting of the sampler for each of the `count` indices of a token: the same for all, or one for each."""
    values = value if isinstance(value, tuple) else (value,) * count
    if len(values) != count:
        raise ConfigError(f"{name} has {len(values)} values, but a token has {count} indices; give 1 or {count}")
    return values


@torch.inference_mode()
def generate(
    gpt: GPT,
    labels: Tensor,
    *,
    draw: Draw,
    guidance: Guidance = UNGUIDED,
    temperature: float | tuple[float, ...] = 1.0,
    top_k: int | tuple[int, ...] = 0,
    top_p: float | tuple[float, ...] = 1.0,
) -> Tensor:
    """Tokens (B,N) or (B,N,k) int64 for class `labels` (B,). `gpt` must be in evaluation mode. Settings may be given
    for each index of a token.

    With guidance the batch is doubled, conditional rows first; as soon as no later token needs them, the unconditional
    rows are dropped.
    """
    assert not gpt.training, "generate() needs gpt.eval()"
    num_tokens, count, batch = gpt.config.num_tokens, gpt.config.num_indices, len(labels)
    each = [replace(guidance, scale=s).scales(num_tokens) for s in per_index(guidance.scale, count, "guidance scale")]
    scales = list(zip(*each, strict=True))  # of the indices of each token
    settings = (temperature, top_k, top_p)
    named = zip(settings, ("temperature", "top_k", "top_p"), strict=True)
    filters = list(zip(*(per_index(value, count, name) for value, name in named), strict=True))
    last_guided = max((t for t, row in enumerate(scales) if set(row) != {1.0}), default=-1)
    inputs = torch.cat([labels, torch.full_like(labels, gpt.null_class)]) if last_guided >= 0 else labels
    cache = KVCache(gpt, len(inputs))
    tokens = []
    for position, row in enumerate(scales):
        if position == last_guided + 1 and len(inputs) > batch:
            inputs = inputs[:batch]
            cache.keep_rows(batch)
        x, indices = gpt.next_hidden(inputs, position, cache), []
        for i, scale in enumerate(row):
            logits = gpt.index_logits(x, i, cache)
            cond, uncond = logits[:batch], logits[batch:]
            if scale != 1:
                cond = uncond + (cond - uncond) * scale
            indices.append(draw(probabilities(cond, *filters[i]), position * count + i))
            x = indices[-1].repeat(len(inputs) // batch)
        tokens.append(torch.stack(indices, dim=-1) if gpt.config.streams else indices[0])
        inputs = tokens[-1].repeat(len(inputs) // batch, *[1] * (tokens[-1].ndim - 1))
    return torch.stack(tokens, dim=1)
