"""Entropies of a soft assignment of latents to the codes of a learned codebook.

The form is that of GigaTok (arXiv:2504.08736, Eq. 3), LFQ (arXiv:2310.05737) and MaskBit (arXiv:2409.16211). For
latents z_i, i = 1..n, codes e_k, k = 1..K, and a temperature t:

    p_ik             = softmax_k(-d_ik / t)        d_ik = |z_i - e_k|^2, or with `squared=False` its square root
    sample_entropy   = mean_i H(p_i)               small: every latent is sure of its code
    codebook_entropy = H(mean_i p_i)               large: all codes are in use
    entropy loss     = sample_entropy - codebook_entropy

H(p) = -sum_k p_k log p_k in nats; for the codebook entropy the released code adds `LOG_EPS` inside the logarithm. The
squared distance over temperature 0.01 is that of the released code; the paper writes the plain distance.

The (n,K) matrix p is never materialized: it is computed in chunks of latents, and recomputed in backward. For 8,192
latents and 16,384 codes that needs about 1 % of the memory of the plain form, with equal losses and gradients.

Backward by hand
    Let S and C be the two entropies, gS and gC the gradients of the loss L with respect to them, P = mean_i p_i and
    s_ik = -d_ik / t the logits.

    1. Entropies.    dC/dP_k  = -(log(P_k + eps) + P_k / (P_k + eps))           a_k := gC dC/dP_k
                     dS/dp_ik = -(log p_ik + 1) / n
                     so dL/dp_ik = (a_k - gS (log p_ik + 1)) / n, because dP_k/dp_ik = 1/n.
    2. Softmax.      dp_ik/ds_ij = p_ik (delta_jk - p_ij), so dL/ds_ij = p_ij (dL/dp_ij - sum_k p_ik dL/dp_ik).
                     The constant 1 of step 1 cancels, and sum_k p_ik log p_ik = -H_i:
                     dL/ds_ij = p_ij (a_j - sum_k p_ik a_k - gS (log p_ij + H_i)) / n
    3. Distance.     ds_ij/dz_i = -2 (z_i - e_j) / t = -ds_ij/de_j. With w_ij := (2 / (t n)) * (n dL/ds_ij):
                     dL/dz_i = sum_j w_ij (e_j - z_i) = (w e)_i   - z_i sum_j w_ij
                     dL/de_j = sum_i w_ij (z_i - e_j) = (w^T z)_j - e_j sum_i w_ij
                     For the plain distance r = sqrt(d), dr/dd = 1 / (2 r), so w_ij is divided by 2 r_ij.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.devices import full_precision, is_gpu
from engine.world import mean_over_ranks

DISTANCE_EPS = 1e-12  # a plain distance whose square is below this has no usable gradient
LOG_EPS = 1e-5  # inside the logarithm of the mean distribution, as released
CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}  # elements of a matrix that are held at a time; other devices: as CPU


def smoothed_entropy(p: Tensor) -> Tensor:
    """Entropy in nats of a distribution p (K,), with `LOG_EPS` inside the logarithm, as released."""
    return -(p * (p + LOG_EPS).log()).sum()


def chunk_elements(device: torch.device) -> int:
    """How many elements of a large matrix to hold at a time on `device`."""
    return CHUNK_ELEMENTS["cuda" if is_gpu(device) else "cpu"]


def rows_per_chunk(codebook: Tensor) -> int:
    """How many latents to compare with the whole codebook (K,D) at a time."""
    return max(1, chunk_elements(codebook.device) // codebook.shape[0])


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances (n,K) of latents (n,D) and codes (K,D). Rounding can make them negative."""
    return z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T


def log_assignment(z: Tensor, codebook: Tensor, temperature: float, squared: bool) -> tuple[Tensor, Tensor]:
    """(log p, distances), both (n,K), of latents (n,D) and codes (K,D); distances are squared or plain."""
    distance = squared_distances(z, codebook)
    if not squared:
        distance = distance.clamp_min(DISTANCE_EPS).sqrt()
    return (-distance / temperature).log_softmax(1), distance


class _StreamedEntropies(torch.autograd.Function):
    """`assignment_entropies`; the names of `backward` are those of the derivation in the module docstring."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, codebook: Tensor, temperature: float, squared: bool, over_ranks: bool
    ) -> tuple[Tensor, Tensor]:
        # Sums over latents, chunk by chunk.
        mean_p = codebook.new_zeros(codebook.shape[0])
        sample_entropy = z.new_zeros(())
        for chunk in z.split(rows_per_chunk(codebook)):
            log_p, _ = log_assignment(chunk, codebook, temperature, squared)
            p = log_p.exp()
            sample_entropy -= (p * log_p).sum()
            mean_p += p.sum(0)
        mean_p /= z.shape[0]

        # Backward treats the mean over ranks like one of this rank alone: gradients are averaged over ranks later, and
        # that gives the missing factor 1 / ranks.
        if over_ranks:
            mean_p = mean_over_ranks(mean_p)

        ctx.save_for_backward(z, codebook, mean_p)
        ctx.temperature = temperature
        ctx.squared = squared
        return sample_entropy / z.shape[0], smoothed_entropy(mean_p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sample: Tensor, grad_codebook: Tensor) -> tuple[Tensor | None, ...]:
        z, codebook, mean_p = ctx.saved_tensors
        grad_z = torch.empty_like(z)
        grad_e = torch.zeros_like(codebook)

        # Step 1: a_k, the gradient of the codebook entropy with respect to the mean distribution.
        a = -((mean_p + LOG_EPS).log() + mean_p / (mean_p + LOG_EPS)) * grad_codebook

        # Autograd calls this outside of the caller's region of full precision.
        rows = rows_per_chunk(codebook)
        with full_precision(z.device):
            for start in range(0, z.shape[0], rows):
                chunk = z[start : start + rows]
                log_p, distance = log_assignment(chunk, codebook, ctx.temperature, ctx.squared)
                p = log_p.exp()

                # Step 2: n dL/ds_ij = p_ij * inner_ij.
                entropy = -(p * log_p).sum(1, keepdim=True)
                inner = a - (p * a).sum(1, keepdim=True) - grad_sample * (log_p + entropy)

                # Step 3: w_ij, and the two sums over it.
                w = p * inner * (2 / (ctx.temperature * z.shape[0]))
                if not ctx.squared:
                    w = w / (2 * distance)
                grad_z[start : start + rows] = w @ codebook - chunk * w.sum(1, keepdim=True)
                grad_e += w.T @ chunk - codebook * w.sum(0).unsqueeze(1)
        return grad_z, grad_e, None, None, None


def assignment_entropies(
    z: Tensor, codes: Tensor, temperature: float, squared: bool = True, over_ranks: bool = False
) -> tuple[Tensor, Tensor]:
    """(sample_entropy, codebook_entropy) in nats of latents `z` (n,D) and `codes` (K,D), float32.

    Gradients go to both. `over_ranks` takes the mean distribution over the latents of all ranks, which
    must all have the same number of them.
    """
    return _StreamedEntropies.apply(z, codes, temperature, squared, over_ranks)
