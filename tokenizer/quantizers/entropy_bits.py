"""Entropy terms of codes that are sign vectors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.devices import full_precision
from engine.world import mean_over_ranks
from tokenizer.quantizers.entropy_assignment import CHUNK_ELEMENTS, LOG_EPS


# ------------------------------------------------------------------------------------------------ codes made of signs
def bit_table(logits: Tensor) -> Tensor:
    """Probabilities of all codes of independent bits, (n,b) -> (n,2^b): bit i has odds exp(logits[:, i]); bit 0 is the
    lowest of a code.
    """
    table = logits.new_ones(len(logits), 1)
    for bit in logits.unbind(1):
        table = torch.cat([table * (-bit).sigmoid()[:, None], table * bit.sigmoid()[:, None]], dim=1)
    return table


class _MeanTable(torch.autograd.Function):
    """Mean over n of `bit_table`, without the (n,2^b) table: the product of those of the lower and upper bits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        low = (logits.shape[1] + 1) // 2
        total = logits.new_zeros(2 ** (logits.shape[1] - low), 2**low)
        ctx.rows = max(1, CHUNK_ELEMENTS.get(logits.device.type, 2**20) >> low)
        for chunk in logits.split(ctx.rows):
            total.addmm_(bit_table(chunk[:, low:]).T, bit_table(chunk[:, :low]))
        ctx.save_for_backward(logits)
        ctx.low = low
        return total.flatten() / len(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        grad, parts = grad.view(-1, 2**ctx.low) / len(logits), []
        with full_precision(logits.device), torch.enable_grad():
            for chunk in logits.split(ctx.rows):
                x = chunk.detach().requires_grad_()
                mean = ((bit_table(x[:, ctx.low :]) @ grad) * bit_table(x[:, : ctx.low])).sum()
                parts.append(torch.autograd.grad(mean, x)[0])
        return torch.cat(parts)


def bit_entropies(
    logits: Tensor, *, codebook: bool, per_group: bool = False, naive: bool = False, over_ranks: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(sample_entropy, codebook_entropy) in nats of codes of b independent bits in G groups, logits (n,G,b).

    The softmax over all sign vectors factorises into bits, so the sample entropy is a sum of binary entropies, exactly.
    Pooled, as WeTok released it: the mean over groups, and the entropy of one histogram that all groups share.
    `per_group`, as in its Eq. 7 and 9: sums over groups. `naive` computes the same from the whole (n,G,2^b) table.
    `over_ranks` averages histograms over all ranks; without `codebook` the codebook entropy is left out.
    """
    groups = logits.unbind(1) if per_group else [logits.flatten(0, 1)]
    sample, of_codes = logits.new_zeros(()), logits.new_zeros(())
    for group in groups:
        if naive:
            p = bit_table(group)
            sample = sample - (p * (p + torch.finfo(p.dtype).tiny).log()).sum(1).mean()
        else:
            size = group.abs()
            sample = sample + (F.softplus(-size) + size * (-size).sigmoid()).sum(1).mean()
        if codebook:
            mean_p = p.mean(0) if naive else _MeanTable.apply(group)
            mean_p = mean_over_ranks(mean_p) if over_ranks else mean_p
            of_codes = of_codes - (mean_p * (mean_p + LOG_EPS).log()).sum()
    return sample, of_codes if codebook else None


def codebook_entropy_bytes(bits: int, samples: int, naive: bool, histograms: int = 1) -> int:
    """About what the codebook entropy of 2^bits codes takes at its peak, with gradients, for `samples` latents."""
    # float32 tables at a time, as measured: seven, and for each further histogram 3.3 that wait for its gradient
    return 4 * 2**bits * (7 * samples if naive else 7 + 4 * (histograms - 1))
