"""Index-backpropagation quantization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from engine.devices import full_precision
from engine.world import mean_over_ranks
from tokenizer.quantizers.base import Quantized, entropy_terms
from tokenizer.quantizers.entropy_assignment import LOG_EPS
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig


@dataclass(kw_only=True, slots=True)
class IBQConfig(VQConfig):
    """As `VQConfig`; latents and codes are compared by their product, and the table of all of them is held."""

    KEY: ClassVar[str] = "model.quantizer.ibq"

    codebook_dim: int = 256
    l2_norm: bool = False


class IBQ(VectorQuantizer):
    """Index backpropagation quantization (arXiv:2412.02692, section 3.2): the choice itself is differentiable.

    p = softmax(z codes^T), the index is its argmax, and z_q = (one_hot + p - sg p) codes: a decoder's gradient reaches
    every code. codebook: mean |z_q - z|^2 through p, which pulls all codes and the latents, + mean |code - sg z|^2;
    commitment: mean |sg code - z|^2; entropies of softmax(z codes^T / temperature).
    """

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        with full_precision(z.device):
            z, codes = self._normalize(z.float()), self.codes()
            logits = z @ codes.T
            indices = logits.argmax(-1)
            if self.training:
                self._remember(indices, z.flatten(0, -2), quantize)
            if not quantize:
                return Quantized(z + 0.0 * codes.sum(), indices)
            p, selected = logits.softmax(-1), F.embedding(indices, codes)
            z_q = (F.one_hot(indices, len(codes)).to(p.dtype) + (p - p.detach())) @ codes
            losses = {
                "codebook": (z_q - z).square().mean() + (selected - z.detach()).square().mean(),
                "commitment": (selected.detach() - z).square().mean(),
            }
            if entropy:
                log_p = (logits / self.config.entropy_temperature).log_softmax(-1).flatten(0, -2)
                mean_p = log_p.exp().mean(0)
                mean_p = mean_over_ranks(mean_p) if self._over_ranks else mean_p
                sample = -(log_p.exp() * log_p).sum(-1).mean()
                losses |= entropy_terms(sample, -(mean_p * (mean_p + LOG_EPS).log()).sum())
            return Quantized(z_q, indices, losses)
