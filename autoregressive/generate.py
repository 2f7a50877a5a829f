"""Sampling from a GPT: classifier-free guidance, temperature, top-k, top-p, and random numbers that belong to a sample.

The random number that picks token t of sample i depends only on (seed, i, t): neither on the batch it is generated in
nor on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from autoregressive.gpt import GPT, KVCache
from engine.config import ConfigError, lookup

T = TypeVar("T")
Draw = Callable[[Tensor, int], Tensor]  # (probabilities (B,V), position) -> indices (B,); a token of k has k positions


def per_index(value: T | tuple[T, ...], count: int, name: str) -> tuple[T, ...]:
    """A setting of the sampler for each of the `count` indices of a token: the same for all, or one for each."""
    values = value if isinstance(value, tuple) else (value,) * count
    if len(values) != count:
        raise ConfigError(f"{name} has {len(values)} values, but a token has {count} indices; give 1 or {count}")
    return values


@dataclass(kw_only=True, slots=True, frozen=True)
class Guidance:
    """Classifier-free guidance: logits = uncond + s (cond - uncond), s = 1 is off.

    `constant`: s everywhere. `step`: s from ratio `start` on, `unguided_scale` before. `linear`: rises from 1 to s. The
    ratio of token t of N is t / (N - 1). As released, the first token has the full scale under every schedule
    (`first_token`).
    """

    scale: float | tuple[float, ...] = 1.0  # or one for each index of a token
    schedule: str = "constant"
    start: float = 0.18  # step only
    first_token: Literal["full", "schedule"] = "full"
    unguided_scale: float = 1.0  # the released code uses 1.0001
    # tokens after number last_guided + 1 use the conditional logits only (`--cfg-interval`); -1 = none
    last_guided: int = -1

    def __post_init__(self) -> None:
        lookup(GUIDANCE_SCHEDULES, self.schedule, "guidance_schedule")
        if not all(1 <= s < math.inf for s in (self.scale if isinstance(self.scale, tuple) else (self.scale,))):
            raise ConfigError(f"guidance_scale={self.scale} must be 1 (off) or more")

    def scales(self, num_tokens: int) -> list[float]:
        """The scale of each token."""
        if self.scale == 1:
            return [1.0] * num_tokens
        ratios = [t / max(1, num_tokens - 1) for t in range(num_tokens)]
        scales = [GUIDANCE_SCHEDULES[self.schedule](self, ratio) for ratio in ratios]
        if self.first_token == "full":
            scales[0] = self.scale
        if self.last_guided > -1:
            scales = [s if t <= self.last_guided + 1 else 1.0 for t, s in enumerate(scales)]
        return scales


def _step(guidance: Guidance, ratio: float) -> float:
    return guidance.scale if guidance.start <= ratio else guidance.unguided_scale


def _linear(guidance: Guidance, ratio: float) -> float:
    return guidance.unguided_scale + (guidance.scale - 1) * ratio


GUIDANCE_SCHEDULES: dict[str, Callable[[Guidance, float], float]] = {
    "constant": lambda guidance, ratio: guidance.scale,
    "step": _step,
    "linear": _linear,
}


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


@torch.inference_mode()
def generate(
    gpt: GPT,
    labels: Tensor,
    *,
    draw: Draw,
    guidance: Guidance = Guidance(),
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
