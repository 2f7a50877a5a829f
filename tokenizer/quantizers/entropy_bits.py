"""Entropies of a soft assignment of latents to sign vectors (WeTok, arXiv:2508.05599, Eq. 6-9).

All 2^b vectors of b signs are codes. The softmax over them, of logits that are linear in each sign, factorizes into
independent bits: bit i of a latent is set with probability sigmoid(l_i), so for a code c with bits c_1 .. c_b

    p(c) = prod_i sigmoid(l_i if c_i else -l_i)                               for one latent with logits l (b,)

    sample_entropy   = mean over latents of sum_i H2(sigmoid(l_i))            exact, without any code
    codebook_entropy = H(mean over latents of p)                              over all 2^b codes

Binary entropy H2 of sigmoid(l): log sigmoid(l) = -softplus(-l), so H2 = sigmoid(l) softplus(-l) + sigmoid(-l)
softplus(l). With softplus(l) = l + softplus(-l) that is softplus(-l) + l sigmoid(-l). It is even in l, and nothing
overflows when it is computed from |l|.

Mean distribution without the (n,2^b) table of p
    Split the bits of a code into lower and upper ones, c = (u,v). The table of a latent is an outer product,
    p_i(u,v) = U_iu V_iv, where U (n,2^(b/2)) and V are the tables of the upper and the lower bits alone. So the mean is

        M = U^T V / n                      one matrix product, (2^(b/2), 2^(b/2)), whose row-major elements are codes

    Backward: with G = dL/dM, dL = sum_uv G_uv dM_uv = d(sum_i sum_uv U_iu G_uv V_iv) / n for fixed G. That sum,
    ((U G / n) * V).sum(), is differentiated by autograd, chunk by chunk, with U and V recomputed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.arithmetic import ceil_div
from engine.devices import full_precision
from engine.world import mean_over_ranks
from tokenizer.quantizers.entropy_assignment import chunk_elements, smoothed_entropy

TABLES_HELD = 7  # float32 tables of all codes at the peak of forward and backward, as measured
TABLES_PER_FURTHER_HISTOGRAM = 4  # each further histogram waits for its gradient; measured: 3.3


def bit_table(logits: Tensor) -> Tensor:
    """Probabilities of all codes of b independent bits: logits (n,b) -> (n,2^b).

    Bit i of a code is set with probability sigmoid(logits[:, i]); bit 0 is the lowest.
    """
    table = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        unset = table * (-bit).sigmoid()[:, None]
        is_set = table * bit.sigmoid()[:, None]
        table = torch.cat([unset, is_set], dim=1)
    return table


class _MeanTable(torch.autograd.Function):
    """Mean over latents of `bit_table`: logits (n,b) -> (2^b,). The module docstring derives it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        count, bits = logits.shape
        lower_bits = ceil_div(bits, 2)
        rows = max(1, chunk_elements(logits.device) >> lower_bits)

        # U^T V, chunk by chunk.
        total = logits.new_zeros(2 ** (bits - lower_bits), 2**lower_bits)
        for chunk in logits.split(rows):
            upper = bit_table(chunk[:, lower_bits:])
            lower = bit_table(chunk[:, :lower_bits])
            total.addmm_(upper.T, lower)

        ctx.save_for_backward(logits)
        ctx.rows = rows
        ctx.lower_bits = lower_bits
        return total.flatten() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        grad = grad.view(-1, 2**ctx.lower_bits) / len(logits)  # G / n

        # Autograd calls this outside of the caller's region of full precision, and with gradients disabled.
        grad_chunks = []
        with full_precision(logits.device), torch.enable_grad():
            for chunk in logits.split(ctx.rows):
                x = chunk.detach().requires_grad_()
                upper = bit_table(x[:, ctx.lower_bits :])
                lower = bit_table(x[:, : ctx.lower_bits])
                weighted_sum = ((upper @ grad) * lower).sum()
                grad_chunks.append(torch.autograd.grad(weighted_sum, x)[0])
        return torch.cat(grad_chunks)


def bit_entropies(
    logits: Tensor,
    *,
    with_codebook_entropy: bool,
    per_group: bool = False,
    naive: bool = False,
    over_ranks: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(sample_entropy, codebook_entropy) in nats of codes of b bits in each of G groups; logits (n,G,b).

    Pooled, as WeTok released it: the sample entropy is a mean over groups, the codebook entropy that of one histogram
    that all groups share. `per_group`, as in its Eq. 7 and 9: sums over groups, each with a histogram of its own.

    `with_codebook_entropy=False` leaves the codebook entropy out (None). `naive` computes the same from whole tables
    (n,2^b). `over_ranks` takes histograms over the latents of all ranks.
    """
    groups = logits.unbind(1) if per_group else [logits.flatten(0, 1)]
    sample_entropy = logits.new_zeros(())
    codebook_entropy = logits.new_zeros(())
    for group in groups:
        table = bit_table(group) if naive else None
        sample_entropy = sample_entropy + _sample_entropy(group, table)
        if with_codebook_entropy:
            histogram = _MeanTable.apply(group) if table is None else table.mean(0)
            if over_ranks:
                histogram = mean_over_ranks(histogram)
            codebook_entropy = codebook_entropy + smoothed_entropy(histogram)
    if not with_codebook_entropy:
        return sample_entropy, None
    return sample_entropy, codebook_entropy


def _sample_entropy(logits: Tensor, table: Tensor | None) -> Tensor:
    """Mean entropy of latents with logits (n,b): from their bits, or from their `table` (n,2^b) if given."""
    if table is not None:
        return -(table * (table + torch.finfo(table.dtype).tiny).log()).sum(1).mean()
    size = logits.abs()
    return (F.softplus(-size) + size * (-size).sigmoid()).sum(1).mean()


def codebook_entropy_bytes(bits: int, samples: int, naive: bool, histograms: int = 1) -> int:
    """About how many bytes the codebook entropy of 2^bits codes takes at its peak, with gradients.

    `samples` is the number of latents, `histograms` that of histograms in one loss: 1 unless groups have their own.
    """
    table_bytes = 4 * 2**bits
    if naive:
        return table_bytes * TABLES_HELD * samples
    return table_bytes * (TABLES_HELD + TABLES_PER_FURTHER_HISTOGRAM * (histograms - 1))
