"""Index backpropagation quantization (IBQ, arXiv:2412.02692, section 3.2): the choice itself is differentiable.

    p   = softmax(z codes^T), the index is its argmax
    z_q = (one_hot + p - sg p) codes: the decoder's gradient reaches every code

Losses    codebook: mean |z_q - z|^2 through p, which pulls all codes and the latents, + w mean |code - sg z|^2
          commitment: mean |sg code - z|^2      entropies: nats, of softmax(z codes^T / temperature)
          w is `hard_codebook_weight`; the released code has 1/4, and weighs the commitment with 1

The table of all p (n,K) is never held: forward needs the indices alone, and backward computes p again, for some latents
at a time. For the gradient G of z_q (one latent per row), with the products s = z codes^T:

    dL/dp_k = G . code_k        dL/ds_k = p_k (dL/dp_k - sum_j p_j dL/dp_j)        then to z and codes: affinity.py
    dL/dcode_k gets G of the latents with index k besides, from the one-hot choice
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.devices import full_precision
from engine.validation import Problem, at_least
from tokenizer.quantizers.affinity import Affinity, Product, nearest_codes
from tokenizer.quantizers.base import Quantized
from tokenizer.quantizers.entropy_assignment import LOG_P_FLOOR, rows_per_chunk
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig


@dataclass(kw_only=True, slots=True)
class IBQConfig(VQConfig):
    """As `VQConfig`. Latents and codes are compared by their product."""

    MOVABLE: ClassVar[bool] = False

    codebook_dim: int = 256
    l2_norm: bool = False
    hard_codebook_weight: float = 1.0  # of mean |code - sg z|^2 in the codebook loss

    def problems(self) -> Iterator[Problem]:
        yield from VQConfig.problems(self)
        yield from at_least(self, "hard_codebook_weight", 0)


class _DifferentiableChoice(torch.autograd.Function):
    """The chosen code of each latent, with the gradient of the module docstring: (n,D), (K,D), (n,) -> (n,D)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(z, codes, indices)

        # A latent that is not finite has no nearest code: NaN, as its softmax is.
        has_code = torch.isfinite(z).all(-1, keepdim=True)
        return F.embedding(indices, codes).masked_fill(~has_code, math.nan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, codes, indices = ctx.saved_tensors
        affinity = Product(codes, temperature=1.0)
        rows = rows_per_chunk(codes)
        grad_z = torch.empty_like(z)

        # Autograd calls this outside of the caller's region of full precision.
        with full_precision(z.device):
            for start in range(0, len(z), rows):
                chunk, grad_chunk = z[start : start + rows], grad[start : start + rows]
                logits = affinity.logits(chunk, z.new_empty(len(chunk), len(codes)))
                p = logits.sub_(logits.amax(1, keepdim=True)).clamp_min_(LOG_P_FLOOR).exp_()
                p /= p.sum(1, keepdim=True)

                grad_p = grad_chunk @ codes.T
                grad_logits = p.mul_(grad_p.sub_(torch.linalg.vecdot(p, grad_p)[:, None]))
                grad_z[start : start + rows] = affinity.backward(chunk, grad_logits, logits)
        return grad_z, affinity.grad_codes().index_add(0, indices, grad), None


class IBQ(VectorQuantizer):
    """See the module docstring."""

    config_class = IBQConfig
    in_words = "most similar of learned code vectors"

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        with full_precision(z.device):
            # The code with the largest product.
            z = self._normalize(z.float())
            codes = self.codes()
            latents = z.flatten(0, -2)
            choice = nearest_codes(Product(codes, temperature=1.0), latents, rows_per_chunk(codes))
            indices = choice.view(z.shape[:-1])
            if self.training:
                self._update_windows(indices, latents, quantize)
            if not quantize:
                return Quantized(z + 0.0 * codes.sum(), indices)

            # A one-hot choice with the gradient of the softmax.
            z_q = _DifferentiableChoice.apply(latents, codes, choice).view(z.shape)
            chosen_codes = F.embedding(indices, codes)
            losses = {
                "codebook": (z_q - z).square().mean()
                + self.config.hard_codebook_weight * (chosen_codes - z.detach()).square().mean(),
                "commitment": (chosen_codes.detach() - z).square().mean(),
            }
            if entropy:
                losses |= self._entropies(latents, codes)
            return Quantized(z_q, indices, losses)

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        """Minus the product, which is largest for the choice."""
        return -(self._normalize(z.float()) * self.decode_indices(indices)).sum(-1)

    @property
    def _entropy_affinity(self) -> type[Affinity]:
        return Product

    def training_flops(self, num_latents: int, entropy: bool) -> int:
        """The choice takes four tables more than a nearest code: products again, gradient of p, two of products."""
        table = 2 * num_latents * self.codebook_size * self.codebook_dim
        return super().training_flops(num_latents, entropy) + 4 * table
