"""Entropies of a soft assignment of latents to the codes of a learned codebook.

The form is that of GigaTok (arXiv:2504.08736, Eq. 3), LFQ (arXiv:2310.05737) and MaskBit (arXiv:2409.16211). For
latents z_i, i = 1..n, codes e_k, k = 1..K, and logits s_ik of how near they are (affinity.py):

    p_ik             = softmax_k(s_ik)
    sample_entropy   = mean_i H(p_i)               small: every latent is sure of its code
    codebook_entropy = H(mean_i p_i)               large: all codes are in use
    entropy loss     = sample_entropy - codebook_entropy

H(p) = -sum_k p_k log p_k in nats; for the codebook entropy the released code adds `LOG_EPS` inside the logarithm. The
squared distance over temperature 0.01 is that of the released code; the paper writes the plain distance.

The (n,K) matrix p is never materialized: it is computed for some latents at a time, in two buffers that fit into the
cache of a CPU, and computed again in backward. For 8,192 latents and 16,384 codes that needs about 1 % of the memory
of the plain form, with equal losses and gradients. Most p_ik are so small that float32 has no normal number for them,
and arithmetic with such numbers is slow: log p_ik is taken as `LOG_P_FLOOR` where it is below. Inside, logits and
logarithms are of base 2, because exp2 takes a third of the time of exp.

Backward by hand
    Let S and C be the two entropies, gS and gC the gradients of the loss L with respect to them, P = mean_i p_i.

    1. Entropies.    dC/dP_k  = -(log(P_k + eps) + P_k / (P_k + eps))           a_k := gC dC/dP_k
                     dS/dp_ik = -(log p_ik + 1) / n
                     so dL/dp_ik = (a_k - gS (log p_ik + 1)) / n, because dP_k/dp_ik = 1/n.
    2. Softmax.      dp_ik/ds_ij = p_ik (delta_jk - p_ij), so dL/ds_ij = p_ij (dL/dp_ij - sum_k p_ik dL/dp_ik).
                     A constant of dL/dp_i cancels, so with b_ik := a_k - gS log p_ik
                     dL/ds_ij = p_ij (b_ij - sum_k p_ik b_ik / sum_k p_ik) / n
                     Rounded p_i do not sum to 1, and b_ik is large where p_ik is small: without the division, which is
                     by 1 in exact arithmetic, the gradients would be 10 times less exact.
                     In base 2 the logits are s_ij / log 2, and their gradients log 2 times these.
    3. Logits.       From dL/ds_ij to dL/dz_i and dL/de_j: affinity.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.devices import full_precision, is_gpu, memory_of
from engine.world import mean_over_ranks
from tokenizer.quantizers.affinity import Affinity, SquaredDistance

LOG_EPS = 1e-5  # inside the logarithm of the mean distribution, as released
LN2 = math.log(2)
LOG_P_FLOOR = -75.0  # exp(-75) = 3e-33; a sum over a million such probabilities is lost in the rounding of 1
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}  # most elements of a table that are held at a time
CHUNK_SHARE = 1 / 64  # most of a GPU's memory that a table may take


def smoothed_entropy(p: Tensor) -> Tensor:
    """Entropy in nats of a distribution p (K,), with `LOG_EPS` inside the logarithm, as released."""
    return -(p * (p + LOG_EPS).log()).sum()


def chunk_elements(device: torch.device) -> int:
    """How many elements of a large float32 table to hold at a time on `device`; other devices count as CPUs.

    It follows the whole memory of a GPU and not what is free, because the order of sums, and so the bits of a training,
    depend on it.
    """
    if not is_gpu(device):
        return CHUNK_ELEMENTS["cpu"]
    fitting = int(memory_of(device) * CHUNK_SHARE) // 4
    return min(CHUNK_ELEMENTS["cuda"], 2 ** (fitting.bit_length() - 1))


def rows_per_chunk(codebook: Tensor) -> int:
    """How many latents to compare with the whole codebook (K,D) at a time."""
    return max(1, chunk_elements(codebook.device) // codebook.shape[0])


class _StreamedEntropies(torch.autograd.Function):
    """`assignment_entropies`; the names of `backward` are those of the derivation in the module docstring."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, codes: Tensor, temperature: float, kind: type[Affinity], over_ranks: bool
    ) -> tuple[Tensor, Tensor]:
        count, num_codes = len(z), len(codes)
        affinity = kind(codes, temperature * LN2)
        rows = min(rows_per_chunk(codes), count)
        table, table_p = z.new_empty(2, rows, num_codes).unbind()

        # Sums over latents, some rows at a time; log_sums are the logarithms of the sums behind each softmax, base 2.
        mean_p = codes.new_zeros(num_codes)
        sample_entropy = z.new_zeros(())
        log_sums = z.new_empty(count)
        for start in range(0, count, rows):
            chunk = z[start : start + rows]
            logits, p = table[: len(chunk)], table_p[: len(chunk)]
            affinity.logits(chunk, logits)

            # p is not divided by its sum yet.
            largest = logits.amax(1)
            logits.sub_(largest[:, None]).clamp_min_(LOG_P_FLOOR / LN2)
            torch.exp2(logits, out=p)
            total = p.sum(1)
            log_total = total.log2()

            sample_entropy += (log_total - torch.linalg.vecdot(p, logits) / total).sum()
            mean_p.addmv_(p.T, 1 / total)
            log_sums[start : start + rows] = largest + log_total
        mean_p /= count

        # Backward treats the mean over ranks like one of this rank alone: gradients are averaged over ranks later, and
        # that gives the missing factor 1 / ranks.
        if over_ranks:
            mean_p = mean_over_ranks(mean_p)

        ctx.save_for_backward(z, codes, mean_p, log_sums)
        ctx.temperature = temperature
        ctx.kind = kind
        return sample_entropy * (LN2 / count), smoothed_entropy(mean_p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sample: Tensor, grad_codebook: Tensor) -> tuple[Tensor | None, ...]:
        z, codes, mean_p, log_sums = ctx.saved_tensors
        affinity = ctx.kind(codes, ctx.temperature * LN2)
        rows = min(rows_per_chunk(codes), len(z))
        table, table_p = z.new_empty(2, rows, len(codes)).unbind()
        grad_z = torch.empty_like(z)

        # Step 1: a_k, the gradient of the codebook entropy with respect to the mean distribution.
        a = -((mean_p + LOG_EPS).log() + mean_p / (mean_p + LOG_EPS)) * grad_codebook

        # Autograd calls this outside of the caller's region of full precision.
        with full_precision(z.device):
            for start in range(0, len(z), rows):
                chunk = z[start : start + rows]
                log_p, p = table[: len(chunk)], table_p[: len(chunk)]
                affinity.logits(chunk, log_p)
                logits = log_p.clone() if affinity.needs_logits else log_p
                log_p.sub_(log_sums[start : start + rows, None]).clamp_min_(LOG_P_FLOOR / LN2)
                torch.exp2(log_p, out=p)

                # Step 2: n dL/ds_ij = p_ij (b_ij - mean of b_i), in place: log_p becomes b, p becomes the result.
                b = torch.addcmul(a, log_p, grad_sample * LN2, value=-1, out=log_p)
                mean_b = torch.linalg.vecdot(p, b) / p.sum(1)
                grad_logits = p.mul_(b.sub_(mean_b[:, None]))

                # Step 3.
                grad_z[start : start + rows] = affinity.backward(chunk, grad_logits, logits)
        share = LN2 / len(z)
        return grad_z * share, affinity.grad_codes() * share, None, None, None


def assignment_entropies(
    z: Tensor,
    codes: Tensor,
    temperature: float,
    affinity: type[Affinity] = SquaredDistance,
    over_ranks: bool = False,
) -> tuple[Tensor, Tensor]:
    """(sample_entropy, codebook_entropy) in nats of latents `z` (n,D) and `codes` (K,D), float32.

    Gradients go to both. `over_ranks` takes the mean distribution over the latents of all ranks, which
    must all have the same number of them.
    """
    return _StreamedEntropies.apply(z, codes, temperature, affinity, over_ranks)
