"""Index backpropagation quantization (IBQ, arXiv:2412.02692, section 3.2): the choice itself is differentiable.

    p   = softmax(z codes^T), the index is its argmax
    z_q = (one_hot + p - sg p) codes: the decoder's gradient reaches every code

Losses    codebook: mean |z_q - z|^2 through p, which pulls all codes and the latents, + mean |code - sg z|^2
          commitment: mean |sg code - z|^2      entropies: nats, of softmax(z codes^T / temperature)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from engine.devices import full_precision
from engine.world import mean_over_ranks
from tokenizer.quantizers.base import Quantized, entropy_terms
from tokenizer.quantizers.entropy_assignment import smoothed_entropy
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig


@dataclass(kw_only=True, slots=True)
class IBQConfig(VQConfig):
    """As `VQConfig`. Latents and codes are compared by their product, and the table of all products is held."""

    codebook_dim: int = 256
    l2_norm: bool = False


class IBQ(VectorQuantizer):
    """See the module docstring."""

    config_class = IBQConfig

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        with full_precision(z.device):
            # The code with the largest product.
            z = self._normalize(z.float())
            codes = self.codes()
            logits = z @ codes.T
            indices = logits.argmax(-1)
            if self.training:
                self._update_windows(indices, z.flatten(0, -2), quantize)
            if not quantize:
                return Quantized(z + 0.0 * codes.sum(), indices)

            # A one-hot choice with the gradient of the softmax.
            p = logits.softmax(-1)
            z_q = (F.one_hot(indices, len(codes)).to(p.dtype) + (p - p.detach())) @ codes

            # Losses.
            nearest_codes = F.embedding(indices, codes)
            losses = {
                "codebook": (z_q - z).square().mean() + (nearest_codes - z.detach()).square().mean(),
                "commitment": (nearest_codes.detach() - z).square().mean(),
            }
            if entropy:
                losses |= self._entropies_of_logits(logits)
            return Quantized(z_q, indices, losses)

    def _entropies_of_logits(self, logits: Tensor) -> dict[str, Tensor]:
        """The entropy terms of the products (B,N,K) of latents and codes."""
        log_p = (logits / self.config.entropy_temperature).log_softmax(-1).flatten(0, -2)
        mean_p = log_p.exp().mean(0)
        mean_p = mean_over_ranks(mean_p) if self._over_ranks else mean_p
        sample_entropy = -(log_p.exp() * log_p).sum(-1).mean()
        return entropy_terms(sample_entropy, smoothed_entropy(mean_p))
