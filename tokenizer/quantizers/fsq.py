"""Finite scalar quantization (arXiv:2309.15505, section 3.1): every channel is rounded to one of a few levels.

Shapes    z, z_q (B,N,D), D = number of levels, z_q in [-1,1]      indices (B,N) in [0, product of the levels), the
          first channel is the lowest digit. There is no codebook to learn and there are no losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.config import ConfigError
from engine.distributed import full_precision
from tokenizer.quantizers.base import Quantized, Quantizer, straight_through

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
        self.config, self.levels = config, list(config.levels)

    def digits(self, z: Tensor) -> Tensor:
        """Latents (B,N,D) -> level numbers from 0, float with a straight-through gradient."""
        levels = torch.tensor(self.levels, device=z.device, dtype=z.dtype)
        half = (levels - 1) * (1 - BOUND_EPS) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = (z + (offset / half).tan()).tanh() * half - offset
        return straight_through(bounded, bounded.round()) + levels // 2

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        assert not entropy, "FSQ has no entropy loss"
        with full_precision(z.device):
            digits = self.digits(z.float())
            indices = (digits.detach().round().long() * self._places(z.device)).sum(-1)
            if self.training:
                self.remember(indices)
            return Quantized(self._centred(digits) if quantize else z.float(), indices)

    def _places(self, device: torch.device) -> Tensor:
        return torch.tensor([math.prod(self.levels[:i]) for i in range(len(self.levels))], device=device)

    def _centred(self, digits: Tensor) -> Tensor:
        half_width = torch.tensor([n // 2 for n in self.levels], device=digits.device)
        return (digits - half_width) / half_width

    def decode_indices(self, indices: Tensor) -> Tensor:
        levels = torch.tensor(self.levels, device=indices.device)
        return self._centred((indices.long()[..., None] // self._places(indices.device) % levels).float())
