"""Finite scalar quantization (FSQ, arXiv:2309.15505, section 3.1): every channel is rounded to one of a few levels.

Shapes    z, z_q (B,N,D), D = number of levels, z_q in [-1,1]      indices (B,N) in [0, product of the levels), the
          first channel is the lowest digit; (B,N,G) where `index_levels` splits the channels. There is no codebook to
          learn and there are no losses.

A channel of L levels is bounded, and rounded to the nearest level. Steps are counted from the middle of the levels:

    curve      y = tanh(slope z / 2 + shift) = 2 sigmoid(slope z + 2 shift) - 1, in (-1,1)
    steps      y half - offset, to the nearest of -middle .. L - 1 - middle      z_q = steps / middle
    half       edges=half: (L - 1) / 2, so that the outermost levels are half as wide as the others
               edges=full: L / 2, all levels are equally wide; what is rounded beyond the last level is that level
               times 1 - 0.001 (numerics=paper), 1 + 0.001 (atanh) or 1 (plain)

An odd L has offset 0, shift 0 and middle (L - 1) / 2. An even L has no level in the middle:

    even=shifted      offset 1/2, middle L / 2: z = 0 lies in the center of level L / 2, and values reach from -1 to
                      1 - 2 / L. The shift undoes the offset, up to an error of the paper: tan(offset / half) where
                      atanh(offset / half) would be exact (numerics=paper and atanh, which thus differ in some codes).
    even=symmetric    offset 0, shift 0, middle (L - 1) / 2: z = 0 lies between two levels, and values reach from -1 to
                      1 (arXiv:2411.19842). 2 levels are signs.

The defaults are the paper's appendix A.1. iFSQ is activation=sigmoid, slope=1.6, numerics=plain with odd levels; slope
1.7 makes normal latents the most uniform, and with edges=full and even=symmetric all levels are equally likely.
docs/quantizers.md has a table of published codes and of the options that give them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from engine.devices import full_precision
from engine.validation import Problem, Section, above
from tokenizer.quantizers.base import Quantized, Quantizer
from tokenizer.quantizers.gradients import straight_through

BOUND_EPS = 1e-3
# What half the width of all levels is multiplied by. The paper keeps tanh inside the outermost levels; other code lets
# it reach a little further, so that the shift of 2 levels has a value.
MARGINS = {"paper": 1 - BOUND_EPS, "atanh": 1 + BOUND_EPS, "plain": 1.0}
MAX_CODES = 2**62  # of one index, which is an int64


@dataclass(kw_only=True, slots=True)
class FSQConfig(Section):
    """The levels of each channel, and how latents become levels; [8, 8, 8, 5, 5, 5] gives 64,000 codes (table 1)."""

    levels: list[int] = field(default_factory=lambda: [8, 8, 8, 5, 5, 5])
    activation: Literal["tanh", "sigmoid"] = "tanh"  # one curve in two kinds of arithmetic: sigmoid is that of iFSQ
    slope: float = 2.0  # of the curve 2 sigmoid(slope z) - 1: 2 is tanh(z); iFSQ has 1.6
    edges: Literal["half", "full"] = "half"  # width of the outermost levels: half of the others, or full
    even: Literal["shifted", "symmetric"] = "shifted"  # even numbers of levels: z = 0 is in a level, or between two
    numerics: Literal["paper", "atanh", "plain"] = "paper"  # bound and shift: see docs/quantizers.md
    index_levels: list[int] = field(default_factory=list)  # channels of each index of a token: [2, 2]; empty: one index

    def problems(self) -> Iterator[Problem]:
        yield from above(self, "slope", 0)
        if not self.levels or min(self.levels) < 2:
            yield Problem("levels", self.levels, "one or more numbers of 2 or more")
            return
        yield from self._index_problems()
        if self.even == "shifted" and any(count % 2 == 0 for count in self.levels):
            yield from self._shift_problems()

    def _index_problems(self) -> Iterator[Problem]:
        """Indices that do not share out the channels, or that are too large."""
        if self.index_levels and (min(self.index_levels) < 1 or sum(self.index_levels) != len(self.levels)):
            accepted = f"1 or more each, all together {len(self.levels)}, the number of levels"
            yield Problem("index_levels", self.index_levels, accepted)
        elif max(self.codes_per_index) >= MAX_CODES:
            accepted = "levels whose product is below 2^62, for each index (index_levels splits them)"
            yield Problem("levels", self.levels, accepted)

    def _shift_problems(self) -> Iterator[Problem]:
        """What a shift of even numbers of levels has no use for, or no value."""
        if self.edges == "full":
            accepted = "half, or even=symmetric: shifted levels of full width are not equally likely"
            yield Problem("edges", self.edges, accepted)
        if self.numerics == "plain":
            accepted = "paper or atanh, which say how an even number of levels is shifted; or even=symmetric"
            yield Problem("numerics", self.numerics, accepted)
        if self.numerics == "atanh" and 2 in self.levels:
            accepted = "3 or more each, or even=symmetric: the shift gives one of 2 levels to 99.99 % of normal latents"
            yield Problem("levels", self.levels, accepted)

    @property
    def channels_per_index(self) -> list[int]:
        """How many channels each index of a token has."""
        return self.index_levels or [len(self.levels)]

    @property
    def codes_per_index(self) -> list[int]:
        """How many codes each index of a token has."""
        ends = [sum(self.channels_per_index[: number + 1]) for number in range(len(self.channels_per_index))]
        starts = [0, *ends[:-1]]
        return [math.prod(self.levels[start:end]) for start, end in zip(starts, ends, strict=True)]


class FSQ(Quantizer):
    """See the module docstring."""

    config_class = FSQConfig
    in_words = "rounded channels, without a learned codebook"
    loss_names = frozenset()
    levels: Tensor  # (D,) levels of each channel
    places: Tensor  # (D,) what a step of each channel adds to its index
    middle: Tensor  # (D,) number of the level at 0; a half lies between two levels
    index_of_channel: Tensor  # (D,) number of the index that a channel belongs to

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config.codes_per_index, len(config.levels))
        self.config = config
        self.is_symmetric = config.even == "symmetric"

        # The digits of indices: each begins with its own first channel.
        places: list[int] = []
        index_of_channel: list[int] = []
        for index, num_channels in enumerate(config.channels_per_index):
            first = len(places)
            places += [math.prod(config.levels[first : first + channel]) for channel in range(num_channels)]
            index_of_channel += [index] * num_channels
        middle = [(count - 1) / 2 if self.is_symmetric else count // 2 for count in config.levels]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("middle", torch.tensor(middle, dtype=torch.float32), persistent=False)
        self.register_buffer("index_of_channel", torch.tensor(index_of_channel), persistent=False)

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        assert not entropy, "FSQ has no entropy loss"
        with full_precision(z.device):
            bounded = self.bound(z.float())
            steps = straight_through(bounded, self.nearest_steps(bounded))
            indices = self.steps_to_indices(steps.detach())
            if self.training:
                self.remember(indices)
            return Quantized(steps / self.middle if quantize else z.float(), indices)

    def warnings(self) -> Iterator[str]:
        if 2 in self.config.levels and not self.is_symmetric:
            yield (
                f"model.quantizer.fsq.levels={self.config.levels}: a channel with 2 levels gives one of them to "
                "94 % of normal latents, because of the paper's shift; even=symmetric makes its levels signs, and with "
                "more levels the skew is small"
            )

    def code_settings(self) -> dict[str, Any]:
        """All but the levels, where they are not the defaults."""
        options = {field.name: getattr(self.config, field.name) for field in fields(FSQConfig)}
        defaults = FSQConfig(levels=self.config.levels)
        return {name: value for name, value in options.items() if value != getattr(defaults, name)}

    # ------------------------------------------------------------------------------------------------ levels
    def bound(self, z: Tensor) -> Tensor:
        """Latents -> steps from the middle level, not rounded; `nearest_steps` rounds them to levels."""
        width = self.levels if self.config.edges == "full" else self.levels - 1
        half_width = width * MARGINS[self.config.numerics] / 2
        z = z * (self.config.slope / 2)
        if self.is_symmetric:
            return self._curve(z) * half_width

        # The shift comes before the curve, the offset behind it.
        offset = (self.levels % 2 == 0) / 2
        ratio = offset / half_width
        shift = ratio.atanh() if self.config.numerics == "atanh" else ratio.tan()
        return self._curve(z + shift) * half_width - offset

    def _curve(self, z: Tensor) -> Tensor:
        """Any latents -> (-1,1)."""
        return z.tanh() if self.config.activation == "tanh" else 2 * torch.sigmoid(2 * z) - 1

    def nearest_steps(self, bounded: Tensor) -> Tensor:
        """Bounded latents -> steps of the nearest level from the middle: whole numbers, or halves."""
        steps = bounded.round()
        if self.is_symmetric:
            steps = torch.where(self.levels % 2 == 0, bounded.floor() + 0.5, steps)
        if self.config.edges == "full":
            steps = steps.clamp(-self.middle, self.levels - 1 - self.middle)
        return steps

    # ------------------------------------------------------------------------------------------------ indices
    def steps_to_indices(self, steps: Tensor) -> Tensor:
        """Steps from the middle level (B,N,D) -> indices (B,N) or (B,N,G)."""
        digits = (steps + self.middle).round().long() * self.places
        indices = [part.sum(-1) for part in digits.split(self.config.channels_per_index, dim=-1)]
        return torch.stack(indices, dim=-1) if self.num_groups > 1 else indices[0]

    def indices_to_steps(self, indices: Tensor) -> Tensor:
        """Indices (B,N) or (B,N,G) -> steps from the middle level (B,N,D)."""
        indices = indices.long()
        of_channels = indices[..., self.index_of_channel] if self.num_groups > 1 else indices[..., None]
        return of_channels // self.places % self.levels - self.middle

    def decode_indices(self, indices: Tensor) -> Tensor:
        return self.indices_to_steps(indices) / self.middle

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        return (self.bound(z.float()) - self.indices_to_steps(indices)).square().sum(-1)
