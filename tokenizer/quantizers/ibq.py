"""Index backpropagation quantization (arXiv:2412.02692, section 3.2): the choice itself is differentiable.

p = softmax(z codes^T), the index is its argmax, and z_q = (one_hot + p - sg p) codes: the decoder's gradient reaches
every code through p, not only the chosen one.

Shapes    z, z_q (B,N,D)      indices (B,N)
Losses    codebook: mean (z_q - z)^2 through p, which pulls all codes and the latents, + mean (code - sg z)^2
          commitment: mean (sg code - z)^2      entropies: nats, of softmax(z codes^T / temperature)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import ConfigError
from engine.distributed import full_precision
from tokenizer.quantizers.base import IndexWindow, Quantized, entropy_terms
from tokenizer.quantizers.entropy import LOG_EPS


@dataclass(kw_only=True, slots=True)
class IBQConfig:
    """A codebook of `codebook_size` vectors of `codebook_dim` channels; the table of all latents and codes is held."""

    codebook_size: int = 16384
    codebook_dim: int = 256
    entropy_temperature: float = 0.01

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.codebook_dim < 1 or self.entropy_temperature <= 0:
            raise ConfigError(
                "model.quantizer.ibq: codebook_size must be 2 or more, codebook_dim 1 or more, "
                "entropy_temperature above 0"
            )


class IBQ(IndexWindow):
    """See the module docstring."""

    def __init__(self, config: IBQConfig) -> None:
        super().__init__((config.codebook_size,), config.codebook_dim)
        self.config = config
        bound = 1 / config.codebook_size
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.codebook_dim).uniform_(-bound, bound))

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        """Latents (B,N,D); `entropy` adds its terms."""
        with full_precision(z.device):
            z, codes = z.float(), self.codebook.float()
            logits = z @ codes.T
            indices = logits.argmax(-1)
            if self.training:
                self.remember(indices)
            if not quantize:
                return Quantized(z + 0.0 * codes.sum(), indices)
            p = logits.softmax(-1)
            one_hot = F.one_hot(indices, len(codes)).to(p.dtype)
            z_q, chosen = (one_hot + (p - p.detach())) @ codes, F.embedding(indices, codes)
            losses = {
                "codebook": (z_q - z).square().mean() + (chosen - z.detach()).square().mean(),
                "commitment": (chosen.detach() - z).square().mean(),
            }
            if entropy:
                log_p = (logits / self.config.entropy_temperature).log_softmax(-1).flatten(0, -2)
                mean_p = log_p.exp().mean(0)
                sample = -(log_p.exp() * log_p).sum(-1).mean()
                losses |= entropy_terms(sample, -(mean_p * (mean_p + LOG_EPS).log()).sum())
            return Quantized(z_q, indices, losses)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (B,N) -> exact code rows (B,N,D)."""
        return F.embedding(indices.long(), self.codebook.float())
