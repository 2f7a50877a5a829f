"""Finite scalar quantization (arXiv:2309.15505, section 3.1): every channel is rounded to one of a few levels.

Shapes    z, z_q (B,N,D), D = number of levels, z_q in [-1,1]      indices (B,N) in [0, product of the levels), the
          first channel is the lowest digit. There is no codebook to learn and there are no losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.devices import full_precision
from engine.messages import ConfigError
from tokenizer.quantizers.base import Quantized, Quantizer
from tokenizer.quantizers.gradients import straight_through

BOUND_EPS = 1e-3  # keeps tanh inside the outermost levels


@dataclass(kw_only=True, slots=True)
class FSQConfig:
    """The levels of each channel; [8, 8, 8, 5, 5, 5] gives 64,000 codes (table 1 of the paper)."""

    levels: list[int] = field(default_factory=lambda: [8, 8, 8, 5, 5, 5])

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2 or math.prod(self.levels) >= 2**62:
            raise ConfigError(f"model.quantizer.fsq.levels={self.levels} must be 2 or more each, fewer than 2^62 codes")


class FSQ(Quantizer):
    """See the module docstring."""

    loss_names = frozenset()

    def __init__(self, config: FSQConfig) -> None:
        super().__init__((math.prod(config.levels),), len(config.levels))
        self.config, sizes = config, config.levels
        places = [math.prod(sizes[:i]) for i in range(len(sizes))]
        for name, values in {"levels": sizes, "places": places, "middle": [n // 2 for n in sizes]}.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        assert not entropy, "FSQ has no entropy loss"
        with full_precision(z.device):
            half, offset = (self.levels - 1) * (1 - BOUND_EPS) / 2, (self.levels % 2 == 0) / 2
            bounded = (z.float() + (offset / half).tan()).tanh() * half - offset
            steps = straight_through(bounded, bounded.round())  # from the middle level
            indices = ((steps.detach().round().long() + self.middle) * self.places).sum(-1)
            if self.training:
                self.remember(indices)
            return Quantized(steps / self.middle if quantize else z.float(), indices)

    def decode_indices(self, indices: Tensor) -> Tensor:
        return (indices.long()[..., None] // self.places % self.levels - self.middle) / self.middle
