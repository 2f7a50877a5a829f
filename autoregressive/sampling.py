"""From logits to an index: temperature, top-k, top-p, and random numbers that belong to a sample.

With `seeded_draw` the random number that picks draw t of sample i depends only on (seed, i, t): neither on the batch
that the sample is generated in nor on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from autoregressive.drawing_order import order_text
from autoregressive.guidance import Guidance
from engine.messages import ConfigError
from engine.seeds import counter_rng, seed_problems
from engine.validation import Problem, is_number, raise_problems

T = TypeVar("T")
PerIndex = T | tuple[T, ...]  # a setting: one value for all indices of a token, or one per index
Draw = Callable[[Tensor, int], Tensor]  # (probabilities (B,V), number of the draw in its image) -> indices (B,)
Numbers = Callable[[int, int], Tensor]  # (first, count) -> random numbers (B,count) of these draws, in [0, 1)

MIN_TEMPERATURE = 1e-5  # smaller ones act as this one, so that logits do not overflow
SAMPLING_KEY = 0xD1CE  # keeps the random numbers of samples apart from others of the same seed


# ---------------------------------------------------------------------------------------------- settings of a draw
def setting_problems(temperature: PerIndex[float], top_k: PerIndex[int], top_p: PerIndex[float]) -> Iterator[Problem]:
    """What is wrong with settings of the sampler; NaN and infinity are."""
    if not all(is_number(value) and 0 < value < math.inf for value in _values(temperature)):
        yield Problem("temperature", temperature, "above 0 and finite")
    if not all(is_number(value) and isinstance(value, Integral) and value >= 0 for value in _values(top_k)):
        yield Problem("top_k", top_k, "0 (all) or more, a whole number")
    if not all(is_number(value) and 0 < value <= 1 for value in _values(top_p)):
        yield Problem("top_p", top_p, "in (0, 1]")


def require_settings(temperature: PerIndex[float], top_k: PerIndex[int], top_p: PerIndex[float]) -> None:
    """Raises one ConfigError that lists all settings that are out of range."""
    raise_problems([problem.text("") for problem in setting_problems(temperature, top_k, top_p)], "the sampler")


def _values(setting: PerIndex[T]) -> tuple[T, ...]:
    """The values of a setting that may be given per index."""
    return setting if isinstance(setting, tuple) else (setting,)


def settings_text(
    *,
    guidance_scale: PerIndex[float],
    guidance_schedule: str = "constant",
    temperature: PerIndex[float] = 1.0,
    top_k: PerIndex[int] = 0,
    top_p: PerIndex[float] = 1.0,
    seed: int = 0,
    greedy: bool = False,
    order: str | Sequence[int] | None = None,
) -> str:
    """Settings of the sampler in one line for people: `seed 0, guidance scale 2, temperature 1`.

    Filters are named where they filter, an order of the cells where there is one. Lists, as a JSON file has them, may
    stand for tuples.
    """

    def said(value: Any) -> str:
        return "/".join(f"{part:g}" for part in value) if isinstance(value, tuple | list) else f"{value:g}"

    parts = [f"guidance scale {said(guidance_scale)}"]
    if guidance_schedule != "constant":
        parts[0] += f" ({guidance_schedule})"
    in_order = [] if order is None else [order_text(order)]
    if greedy:
        return ", ".join(["always the most probable code", *parts, *in_order])
    parts = [f"seed {seed}", *parts, f"temperature {said(temperature)}"]
    parts += [f"top-k {said(top_k)}"] if said(top_k) != "0" else []
    parts += [f"top-p {said(top_p)}"] if said(top_p) != "1" else []
    return ", ".join([*parts, *in_order])


@dataclass(frozen=True)
class IndexSettings:
    """How one index of one token is drawn."""

    guidance_scale: float  # 1 = no guidance
    temperature: float
    top_k: int  # 0 = all
    top_p: float  # 1 = all


class DecodingSettings:
    """How every index of every token of an image is drawn: `at(token)` gives the settings of the token's indices.

    Guidance changes from token to token, the filters do not. Raises ConfigError if a setting is out of range, or given
    per index, but not for `num_indices` of them.
    """

    def __init__(
        self,
        num_tokens: int,
        num_indices: int,
        *,
        guidance: Guidance,
        temperature: PerIndex[float],
        top_k: PerIndex[int],
        top_p: PerIndex[float],
    ) -> None:
        require_settings(temperature, top_k, top_p)
        scales = per_index(guidance.scale, num_indices, "guidance scale")
        self.index_scales = [replace(guidance, scale=scale).scales(num_tokens) for scale in scales]  # [index][token]
        self.temperatures = per_index(temperature, num_indices, "temperature")
        self.top_ks = per_index(top_k, num_indices, "top_k")
        self.top_ps = per_index(top_p, num_indices, "top_p")

        # After the last guided token nobody needs unconditional logits any more.
        guided = [t for scales_of_index in self.index_scales for t, scale in enumerate(scales_of_index) if scale != 1]
        self.num_guided = max(guided, default=-1) + 1

    def at(self, token: int) -> list[IndexSettings]:
        """The settings of each index of token number `token`."""
        scales = [scales_of_index[token] for scales_of_index in self.index_scales]
        columns = zip(scales, self.temperatures, self.top_ks, self.top_ps, strict=True)
        return [IndexSettings(*column) for column in columns]


def guided_logits(logits: Tensor, batch: int, scale: float) -> Tensor:
    """Logits (batch,...) under guidance: `logits` has `batch` conditional rows, then with a scale other than 1 as many
    unconditional ones.
    """
    conditional = logits[:batch]
    if scale == 1:
        return conditional
    unconditional = logits[batch:]
    return unconditional + (conditional - unconditional) * scale


def per_index(value: PerIndex[T], num_indices: int, name: str) -> tuple[T, ...]:
    """A setting of the sampler for each of the `num_indices` indices of a token.

    Raises ConfigError if `value` is a tuple of another length.
    """
    values = value if isinstance(value, tuple) else (value,) * num_indices
    if len(values) != num_indices:
        accepted = f"{num_indices} indices; give 1 or {num_indices}" if num_indices > 1 else "1 index; give 1"
        raise ConfigError(f"{name} has {len(values)} values, but a token has {accepted}")
    return values


# ---------------------------------------------------------------------------------------------- from logits to p
def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Puts all logits (B,V) but the `top_k` largest, then all outside of the `top_p` nucleus, at -inf.

    Ties with the smallest of the `top_k` stay; 0 = all. The nucleus ends with the first token whose cumulative
    probability exceeds `top_p`; that token stays.
    """
    if top_k > 0:
        smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)

    if top_p < 1:
        # Probability of all more probable tokens; 0 for the most probable one.
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Turns logits (B,V) into the distribution (B,V) that an index is drawn from."""
    return filter_logits(logits / max(temperature, MIN_TEMPERATURE), top_k, top_p).softmax(-1)


# ---------------------------------------------------------------------------------------------- draws
def greedy(p: Tensor, position: int) -> Tensor:
    """Picks the most probable index."""
    return p.argmax(-1)


class SeededDraw:
    """Draws by inverse transform with the uniform numbers of `table` (B, num_draws) float64, in [0, 1).

    The table moves to the device of the first draw, once: no draw waits for the host or makes it wait.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, p: Tensor, position: int) -> Tensor:
        if self.table.device != p.device:
            self.table = self.table.to(p.device)

        # Scaled by the last sum, which rounding may leave beside 1; an index of probability 0 is never reached.
        cumulative = p.double().cumsum(-1)
        target = self.table[:, position : position + 1] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(p.shape[-1] - 1)

    def numbers(self, first: int, count: int) -> Tensor:
        """The random numbers (B,count) of draws that are not of an index."""
        return self.table[:, first : first + count]


def gumbel(uniform: Tensor) -> Tensor:
    """Numbers of the standard Gumbel distribution, from uniform ones in [0, 1)."""
    return -(-uniform.log()).log()


def least(trust: Tensor, count: int) -> Tensor:
    """Which slots of each row (B,...) are the `count` of the least trust; of equal ones the first."""
    flat = trust.flatten(1)
    lowest = flat.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, lowest, True).view_as(trust)


def seeded_draw(seed: int, sample_ids: Tensor, num_draws: int) -> SeededDraw:
    """Draws with one uniform number per (seed, sample, position).

    `seed` has 64 bits, and each is a stream of its own. `sample_ids` (B,) int64, 0 or more; an image takes `num_draws`
    numbers (see `Generator.num_draws`). Raises ConfigError for another seed.
    """
    raise_problems([problem.text("") for problem in seed_problems(seed)])
    rows = [counter_rng(seed, SAMPLING_KEY, int(sample_id)).random(num_draws) for sample_id in sample_ids]
    return SeededDraw(torch.from_numpy(np.stack(rows)))
