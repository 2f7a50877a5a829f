"""Entropy terms of a soft assignment of latents to codes (GigaTok Eq. 3; MaskBit and LFQ use the same form).

`assignment_entropies` are those of a learned codebook, `bit_entropies` of codes that are sign vectors (WeTok).

    p(k | n) = softmax_k(-|z_n - e_k|^2 / temperature)
    sample_entropy   = mean_n H(p(. | n))          small: every latent is sure of its code
    codebook_entropy = H(mean_n p(. | n))          large: all codes are in use
    entropy loss     = sample_entropy - codebook_entropy     nats

The squared distance over temperature 0.01 is that of the released code; the paper writes the plain distance (`plain`).
The (tokens x codes) table is never held: it is streamed in chunks of tokens and made again in the backward pass. For
8,192 tokens and 16,384 codes that needs about 1 % of the memory of the plain form, with equal losses and gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.devices import full_precision
from engine.world import mean_over_ranks

DISTANCE_EPS = 1e-12  # below it a plain distance has no usable gradient


LOG_EPS = 1e-5  # inside the logarithm of the mean distribution, as released


CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}  # table entries held at a time


def rows_per_chunk(codebook: Tensor) -> int:
    """How many tokens to compare with the whole codebook at a time."""
    return max(1, CHUNK_ELEMENTS.get(codebook.device.type, 2**20) // codebook.shape[0])


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """(n,D), (K,D) -> (n,K)."""
    return z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T


def log_assignment(z: Tensor, codebook: Tensor, temperature: float, squared: bool) -> tuple[Tensor, Tensor]:
    """(log p(k | n), distances), both (n,K); the distance is squared or plain."""
    distance = squared_distances(z, codebook)
    if not squared:
        distance = distance.clamp_min(DISTANCE_EPS).sqrt()
    return (-distance / temperature).log_softmax(1), distance


class _StreamedEntropies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, codebook: Tensor, temperature: float, squared: bool, over_ranks: bool
    ) -> tuple[Tensor, Tensor]:
        mean_p = codebook.new_zeros(codebook.shape[0])
        sample_entropy = z.new_zeros(())
        for chunk in z.split(rows_per_chunk(codebook)):
            log_p, _ = log_assignment(chunk, codebook, temperature, squared)
            p = log_p.exp()
            sample_entropy -= (p * log_p).sum()
            mean_p += p.sum(0)
        mean_p /= z.shape[0]
        mean_p = mean_over_ranks(mean_p) if over_ranks else mean_p  # backward: of this rank's share, as it is averaged
        ctx.save_for_backward(z, codebook, mean_p)
        ctx.temperature, ctx.squared = temperature, squared
        return sample_entropy / z.shape[0], -(mean_p * (mean_p + LOG_EPS).log()).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sample: Tensor, grad_codebook: Tensor) -> tuple[Tensor | None, ...]:
        z, codebook, mean_p = ctx.saved_tensors
        to_mean = -((mean_p + LOG_EPS).log() + mean_p / (mean_p + LOG_EPS)) * grad_codebook
        grad_z, grad_e = torch.empty_like(z), torch.zeros_like(codebook)
        rows = rows_per_chunk(codebook)
        with full_precision(z.device):
            for start in range(0, z.shape[0], rows):
                chunk = z[start : start + rows]
                log_p, distance = log_assignment(chunk, codebook, ctx.temperature, ctx.squared)
                p = log_p.exp()
                entropy = -(p * log_p).sum(1, keepdim=True)
                inner = to_mean - (p * to_mean).sum(1, keepdim=True) - grad_sample * (log_p + entropy)
                g = p * inner * (2 / (ctx.temperature * z.shape[0]))  # of -squared distance / 2
                if not ctx.squared:
                    g = g / (2 * distance)
                grad_z[start : start + rows] = g @ codebook - chunk * g.sum(1, keepdim=True)
                grad_e += g.T @ chunk - codebook * g.sum(0).unsqueeze(1)
        return grad_z, grad_e, None, None, None


def assignment_entropies(
    z: Tensor, codebook: Tensor, temperature: float, squared: bool = True, over_ranks: bool = False
) -> tuple[Tensor, Tensor]:
    """(sample_entropy, codebook_entropy) in nats of latents (n,D) and codes (K,D), float32; gradients go to both.
    `over_ranks` averages the distribution of codes over all ranks.
    """
    return _StreamedEntropies.apply(z, codebook, temperature, squared, over_ranks)
