"""Tokens of any number: in training the decoder sees the first k tokens of an image, k drawn anew for each.

Nested dropout as in FlexTok (arXiv:2502.13967): codes never depend on k, and tokens after the first k are hidden from
the decoder. With `full_pass` every step also decodes all tokens, as in NesTok: alone, nested dropout leaves the last
tokens little to say. k comes from the random bits of an image, so that it depends on (seed, position) only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.seeds import RANDOM_BITS
from engine.validation import Problem, Section, one_of

# A permutation of the numbers below 2^31 (a full-period linear congruence): a quantizer may read the same bits.
FACTOR, SUMMAND = 1_103_515_245, 12_345
FIXED, LISTED = "fixed", "listed"


def powers_of_two(num_tokens: int) -> list[int]:
    """1, 2, 4, ..., `num_tokens`, a power of 2."""
    return [2**power for power in range(num_tokens.bit_length())]


def _uniform(num_tokens: int) -> list[int]:
    return list(range(1, num_tokens + 1))


def _uniform_pow2(num_tokens: int) -> list[int]:
    """Uniform lengths, rounded up to a power of 2: P(1) = 1/N and P(2^j) = 2^(j-1)/N, so that P(N) = 1/2."""
    return [1 << (length - 1).bit_length() for length in range(1, num_tokens + 1)]


# Name -> (number of tokens) -> lengths that are equally likely; a length that stands there twice is twice as likely.
LAWS: dict[str, Callable[[int], list[int]]] = {
    "uniform": _uniform,
    "pow2": powers_of_two,
    "uniform_pow2": _uniform_pow2,
}


@dataclass(kw_only=True, slots=True)
class FlexibleConfig(Section):
    """How many tokens the decoder sees in training."""

    # fixed (always all) | uniform (1..N) | pow2 (1, 2, 4, ..., N) | uniform_pow2 (uniform, rounded up) | listed
    lengths: str = FIXED
    listed: list[int] = field(default_factory=list)  # with lengths=listed: equally likely ones
    full_pass: bool = True  # decode all tokens too, with pixel and perceptual losses of both

    def problems(self) -> Iterator[Problem]:
        yield from one_of(self, "lengths", {FIXED, LISTED, *LAWS})
        if (self.lengths == LISTED) != bool(self.listed):
            yield Problem("listed", self.listed, "empty, or with lengths=listed one length or more")

    @property
    def enabled(self) -> bool:
        """Whether lengths are drawn at all."""
        return self.lengths != FIXED


class Lengths:
    """The law of the lengths of a network with `num_tokens` tokens."""

    def __init__(self, config: FlexibleConfig, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.equally_likely = config.listed if config.lengths == LISTED else LAWS[config.lengths](num_tokens)
        self._tables: dict[torch.device, Tensor] = {}  # copied to a device once

    @property
    def shown(self) -> tuple[int, ...]:
        """The lengths below all tokens at which validation looks: powers of 2, or those that are listed."""
        lengths = {*self.equally_likely} if len(self.equally_likely) < self.num_tokens else set()
        lengths = lengths or {*powers_of_two(self.num_tokens)}
        return tuple(sorted(lengths - {self.num_tokens}))

    def drawn(self, random_bits: Tensor) -> Tensor:
        """Lengths (B,) in 1..N from 31 random bits of each image (B,), both int64."""
        table = self._tables.get(random_bits.device)
        if table is None:
            table = torch.tensor(self.equally_likely, device=random_bits.device)
            self._tables[random_bits.device] = table
        bits = (random_bits * FACTOR + SUMMAND) & (2**RANDOM_BITS - 1)
        return table[bits * len(table) >> RANDOM_BITS]


def visible(lengths: Tensor, num_tokens: int) -> Tensor:
    """Lengths (B,) -> bool (B, num_tokens): which tokens of each image the decoder sees."""
    return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]
