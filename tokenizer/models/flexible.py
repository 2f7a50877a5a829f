"""Tokens of any number: in training the decoder sees the first k tokens of an image, k drawn anew for each.

Nested dropout as in FlexTok (arXiv:2502.13967): codes never depend on k, and tokens after the first k are hidden from
the decoder. With `full_pass` every step also decodes all tokens, as in NesTok: alone, nested dropout leaves the last
tokens little to say. `align_weight` (NesTok) draws early features of the decoder at k tokens to those at all tokens;
`padding` and `semantic_by_length` are ReTok's. k comes from the random bits of an image, so that it depends on (seed,
position) only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.devices import full_precision
from engine.seeds import RANDOM_BITS
from engine.validation import Problem, Section, at_least, one_of

# A permutation of the numbers below 2^31 (a full-period linear congruence): a quantizer may read the same bits.
FACTOR, SUMMAND = 1_103_515_245, 12_345
FIXED, LISTED = "fixed", "listed"
CONSTANT, LINEAR = "constant", "linear"  # values of `semantic_by_length`
ALIGNMENT = "prefix_alignment"  # the name of the loss of `align_weight`


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
    align_weight: float = 0.0  # of 1 - cos of early decoder features of the first k tokens and of all; 0 = not computed
    padding: int = 0  # further tokens in training, the last ones: so fewer draws of k hide the last tokens of an image
    # The semantic loss of a training step: constant (that of all tokens) | linear (that of the first k tokens, weighted
    # by 1 - (k-1)/(N-1), where N counts the padding)
    semantic_by_length: str = CONSTANT

    def problems(self) -> Iterator[Problem]:
        yield from one_of(self, "lengths", {FIXED, LISTED, *LAWS})
        if (self.lengths == LISTED) != bool(self.listed):
            yield Problem("listed", self.listed, "empty, or with lengths=listed one length or more")
        yield from at_least(self, "align_weight", 0)
        yield from at_least(self, "padding", 0)
        yield from one_of(self, "semantic_by_length", {CONSTANT, LINEAR})

        # What has a meaning with some lengths only.
        if self.align_weight > 0 and not (self.enabled and self.full_pass):
            yield Problem("align_weight", self.align_weight, "0 without flexible lengths and full_pass=true")
        if self.padding > 0 and self.lengths not in {"uniform", LISTED}:
            yield Problem("padding", self.padding, f"0 with lengths={self.lengths}; it needs uniform or listed lengths")
        if self.semantic_by_length == LINEAR and not self.enabled:
            yield Problem("semantic_by_length", self.semantic_by_length, f"{CONSTANT} with lengths={FIXED}")

    @property
    def enabled(self) -> bool:
        """Whether lengths are drawn at all."""
        return self.lengths != FIXED


class Lengths:
    """The law of the lengths of a network with `num_tokens` tokens, and as many more in training as its padding."""

    def __init__(self, config: FlexibleConfig, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.num_in_training = num_tokens + config.padding
        is_listed = config.lengths == LISTED
        self.equally_likely = config.listed if is_listed else LAWS[config.lengths](self.num_in_training)
        self._tables: dict[torch.device, Tensor] = {}  # copied to a device once

    @property
    def shown(self) -> tuple[int, ...]:
        """The lengths below all tokens at which validation looks: powers of 2, or those that are listed."""
        lengths = {*self.equally_likely} if len(self.equally_likely) < self.num_tokens else set()
        lengths = lengths or {*powers_of_two(self.num_tokens)}
        return tuple(sorted(length for length in lengths if length < self.num_tokens))

    def drawn(self, random_bits: Tensor) -> Tensor:
        """Lengths (B,) in 1..N, where N counts the padding, from 31 random bits of each image (B,), both int64."""
        table = self._tables.get(random_bits.device)
        if table is None:
            table = torch.tensor(self.equally_likely, device=random_bits.device)
            self._tables[random_bits.device] = table
        bits = (random_bits * FACTOR + SUMMAND) & (2**RANDOM_BITS - 1)
        return table[bits * len(table) >> RANDOM_BITS]


def visible(lengths: Tensor, num_tokens: int) -> Tensor:
    """Lengths (B,) -> bool (B, num_tokens): which tokens of each image the decoder sees."""
    return torch.arange(num_tokens, device=lengths.device) < lengths[:, None]


def semantic_weights(lengths: Tensor, num_tokens: int) -> Tensor:
    """Lengths (B,) in 1..num_tokens -> weights (B,) of the semantic loss: 1 at one token, linear, 0 at all tokens.

    ReTok says that the weight of its semantic regularization falls; its formula is unreleased, this one is ours.
    """
    return 1 - (lengths - 1) / max(num_tokens - 1, 1)


def alignment_loss(prefix: Tensor, whole: Tensor) -> Tensor:
    """1 - mean cosine similarity of early decoder features (B,n,C) of the first k tokens and of all, in float32.

    NesTok's L_align: no gradient flows to the features of all tokens. It lies in 0..2.
    """
    with full_precision(prefix.device):
        return 1 - F.cosine_similarity(prefix.float(), whole.detach().float(), dim=-1).mean()
