"""SimVQ (arXiv:2411.02038): the codebook is a frozen random table times one learned matrix.

Every update of the matrix moves all codes, so none is left behind. Losses and distances are those of `vq.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokenizer.quantizers.vq import VectorQuantizer, VQConfig


@dataclass(kw_only=True, slots=True)
class SimVQConfig(VQConfig):
    """As `VQConfig`, with the paper's plain distances and straight-through gradients."""

    LEARNED: ClassVar[bool] = False
    MOVABLE: ClassVar[bool] = False

    codebook_size: int = 65536
    codebook_dim: int = 128
    l2_norm: bool = False
    rotation_trick: bool = False


class SimVQ(VectorQuantizer):
    """See the module docstring."""

    config_class = SimVQConfig
    in_words = "nearest of code vectors that one learned matrix moves"

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__(config)
        table = torch.randn(self.codebook_size, self.codebook_dim) * self.codebook_dim**-0.5
        self.codebook = nn.Parameter(table, requires_grad=False)
        self.projection = nn.Linear(self.codebook_dim, self.codebook_dim)

    def codes(self) -> Tensor:
        return self._normalize(self.projection(self.codebook).float())
