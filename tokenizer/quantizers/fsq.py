"""Finite scalar quantization (FSQ, arXiv:2309.15505, section 3.1): every channel is rounded to one of a few levels.

Shapes    z, z_q (B,N,D), D = number of levels, z_q in [-1,1]      indices (B,N) in [0, product of the levels), the
          first channel is the lowest digit. There is no codebook to learn and there are no losses.

A channel with an even number of levels is shifted by half a step before it is bounded (`bound`), as in the paper's
appendix A.1. The shift passes through tan, so a channel with 2 levels gives one of them to 94 % of normal latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.devices import full_precision
from engine.validation import Problem, Section
from tokenizer.quantizers.base import Quantized, Quantizer
from tokenizer.quantizers.gradients import straight_through

BOUND_EPS = 1e-3  # keeps tanh inside the outermost levels


@dataclass(kw_only=True, slots=True)
class FSQConfig(Section):
    """The levels of each channel; [8, 8, 8, 5, 5, 5] gives 64,000 codes (table 1 of the paper)."""

    levels: list[int] = field(default_factory=lambda: [8, 8, 8, 5, 5, 5])

    def problems(self) -> Iterator[Problem]:
        if not self.levels or min(self.levels) < 2:
            yield Problem("levels", self.levels, "one or more numbers of 2 or more")
        elif math.prod(self.levels) >= 2**62:
            yield Problem("levels", self.levels, "levels whose product is below 2^62")


class FSQ(Quantizer):
    """See the module docstring."""

    config_class = FSQConfig
    in_words = "rounded channels, without a learned codebook"
    loss_names = frozenset()
    levels: Tensor  # (D,) levels of each channel
    places: Tensor  # (D,) what a step of each channel adds to the index
    middle: Tensor  # (D,) number of the level at 0

    def __init__(self, config: FSQConfig) -> None:
        num_codes = math.prod(config.levels)
        super().__init__((num_codes,), len(config.levels))
        self.config = config

        places = [math.prod(config.levels[:channel]) for channel in range(len(config.levels))]
        middle = [count // 2 for count in config.levels]
        self.register_buffer("levels", torch.tensor(config.levels), persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("middle", torch.tensor(middle), persistent=False)

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        assert not entropy, "FSQ has no entropy loss"
        with full_precision(z.device):
            bounded = self.bound(z.float())
            steps = straight_through(bounded, bounded.round())
            indices = self.steps_to_indices(steps.detach())
            if self.training:
                self.remember(indices)
            return Quantized(steps / self.middle if quantize else z.float(), indices)

    def warnings(self) -> Iterator[str]:
        if 2 in self.config.levels:
            yield (
                f"model.quantizer.fsq.levels={self.config.levels}: a channel with 2 levels gives one of them to "
                "94 % of normal latents, because of the paper's shift; with more levels the skew is small"
            )

    def bound(self, z: Tensor) -> Tensor:
        """Latents -> steps from the middle level, not rounded; rounding gives one of the channel's levels."""
        half_width = (self.levels - 1) * (1 - BOUND_EPS) / 2
        offset = (self.levels % 2 == 0) / 2
        shift = (offset / half_width).tan()
        return (z + shift).tanh() * half_width - offset

    def steps_to_indices(self, steps: Tensor) -> Tensor:
        """Steps from the middle level (B,N,D) -> indices (B,N)."""
        return ((steps.round().long() + self.middle) * self.places).sum(-1)

    def indices_to_steps(self, indices: Tensor) -> Tensor:
        """Indices (B,N) -> steps from the middle level (B,N,D)."""
        return indices.long()[..., None] // self.places % self.levels - self.middle

    def decode_indices(self, indices: Tensor) -> Tensor:
        return self.indices_to_steps(indices) / self.middle

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        return (self.bound(z.float()) - self.indices_to_steps(indices)).square().sum(-1)
