"""Tokens as bits (BAR, arXiv:2602.09024): indices to bits and back, how bits are masked in training, and drawn.

A token of k indices of 2^n codes each is a row of b bits, those of the first index first, of an index the lowest first.
So a token may have any number of bits, whatever an index holds.

Shapes    tokens (...) or (...,k) int64      bits (...,b) int64, 0 or 1; MASKED stands for one that is not known
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from autoregressive.bit_drawing import BitDrawing
from engine.validation import Problem, Section, at_least, in_range

MASKED = 2  # the value of a bit that is not known
SLOPE = 0.8  # of the law of masked shares: 1 - sigmoid(0.8 n) with n of the standard normal distribution
STEPS = (2, 4, 9, 16)  # sixteenths of the bits that are known after each step: the published 2, 2, 5, 7 of 16 bits


@dataclass(kw_only=True, slots=True)
class BitsConfig(Section):
    """A head that writes the bits of a token: its width, how bits are masked in training, and how they are drawn."""

    width: int | None = None  # channels of the head; null: those of the GPT; published: 2048
    full_mask_share: float = 0.0  # training: share of tokens of which all bits are masked, where drawing begins
    visible_weight: float = 0.1  # training: weight of the loss of bits that are not masked
    order: Literal["confidence", "fixed"] = "confidence"  # which bits stay in each step; fixed: the first ones
    allocation: list[int] = field(default_factory=list)  # bits of each step; empty: as 2, 2, 5, 7 are to 16
    temperature: Literal["falling", "constant"] = "falling"  # falling: T (1 - j/S) in step j of S, from 0, as released

    def problems(self) -> Iterator[Problem]:
        if self.width is not None:
            yield from at_least(self, "width", 1)
        yield from in_range(self, "full_mask_share", 0, 1)
        yield from in_range(self, "visible_weight", 0, 1)
        if min(self.allocation, default=1) < 1:
            yield Problem("allocation", self.allocation, "numbers of 1 or more")

    def steps(self, bits: int) -> list[int]:
        """How many of a token's `bits` are known after each step of drawing; the last number is `bits`."""
        if self.allocation:
            return np.cumsum(self.allocation).tolist()
        return sorted({max(1, bits * part // STEPS[-1]) for part in STEPS})

    def drawing(self, bits: int) -> BitDrawing:
        """How a token of `bits` bits is drawn where a sampler says nothing else."""
        allocation = np.diff(self.steps(bits), prepend=0).tolist()
        return BitDrawing(allocation=tuple(allocation), order=self.order, temperature=self.temperature)


# ------------------------------------------------------------------------------------------------ indices and bits
def bits_of_sizes(codebook_sizes: Sequence[int]) -> tuple[int, ...]:
    """Bits of each index. Powers of two, 2 or more, are expected."""
    return tuple(size.bit_length() - 1 for size in codebook_sizes)


def has_whole_bits(size: int) -> bool:
    """Whether an index of `size` codes is a number of bits."""
    return size >= 2 and size & (size - 1) == 0


def to_bits(tokens: Tensor, bits_of_index: Sequence[int]) -> Tensor:
    """Tokens (...) of one index, or (...,k) -> bits (...,b)."""
    indices = (tokens,) if len(bits_of_index) == 1 else tokens.unbind(-1)
    columns = zip(indices, bits_of_index, strict=True)
    return torch.cat([index[..., None] >> _places(n, index) & 1 for index, n in columns], dim=-1)


def to_tokens(bits: Tensor, bits_of_index: Sequence[int]) -> Tensor:
    """The inverse of `to_bits`."""
    parts = bits.split(list(bits_of_index), dim=-1)
    indices = [(part << _places(part.shape[-1], part)).sum(-1) for part in parts]
    return indices[0] if len(indices) == 1 else torch.stack(indices, dim=-1)


def _places(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


# ------------------------------------------------------------------------------------------------ masks of training
def draw_bit_masks(num_tokens: int, bits: int, full_share: float, rng: np.random.Generator) -> dict[str, Tensor]:
    """The masks of one training sample, by the names that they have in a batch.

    `bit_mask` (N,b) bool: max(1, round(b m)) bits of each token, chosen uniformly. `masked_share` (N,) float32 in
    (0, 1]: m = max(1/b, 1 - sigmoid(0.8 n)), before it is rounded; 1 for the `full_share` of tokens, all masked.
    """
    share = np.maximum(1 / (1 + np.exp(SLOPE * rng.standard_normal(num_tokens))), 1 / bits)
    if full_share > 0:
        share = np.where(rng.random(num_tokens) < full_share, 1.0, share)
    place = rng.random((num_tokens, bits)).argsort(axis=1).argsort(axis=1)
    mask = place < np.rint(bits * share)[:, None]
    return {"bit_mask": torch.from_numpy(mask), "masked_share": torch.from_numpy(share.astype(np.float32))}


def expected_share(bits: int, full_share: float) -> float:
    """The mean share of bits that `draw_bit_masks` masks: sum of P(round(b m) >= j) over j of 1..b, over b."""
    law = NormalDist()
    parts = [(j - 0.5) / bits for j in range(2, bits + 1)]
    share = (1 + sum(law.cdf(math.log(1 / part - 1) / SLOPE) for part in parts)) / bits
    return full_share + (1 - full_share) * share
