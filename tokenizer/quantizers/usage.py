"""Codebook usage and perplexity from indices or histograms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COUNTED_SIZE = 2**20  # larger codebooks are counted by sorting the indices


def code_usage(indices: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Health of a codebook from indices (n,) or (n,G) of codebooks of G `sizes`.

    `codebook_usage`: share of codes in use. `codebook_perplexity`: exp of the entropy of their frequencies. Both are
    means over groups; with several groups also the usage of each, and of one histogram that all groups share
    (`codebook_usage_pooled`, what WeTok reports).
    """
    columns, largest = indices.reshape(len(indices), len(sizes)).long().unbind(1), max(sizes)
    if largest <= COUNTED_SIZE:
        counts = [torch.bincount(column, minlength=largest) for column in columns]
        pooled = (sum(counts) > 0).sum()
    else:
        counts = [column.unique(return_counts=True)[1] for column in columns]
        pooled = torch.tensor(len(torch.cat(columns).unique()))
    return usage_of_counts(counts, sizes, pooled)


def usage_of_counts(counts: Sequence[Tensor], sizes: Sequence[int], pooled: Tensor) -> dict[str, Tensor]:
    """`code_usage` from how often the codes of each group occurred; `pooled` is the number of codes that any group
    used.
    """
    shares = [count.double() / count.sum().clamp_min(1) for count in counts]
    used = [(p > 0).double().sum() / size for p, size in zip(shares, sizes, strict=True)]
    perplexity = torch.stack([torch.exp(-torch.special.xlogy(p, p).sum()) for p in shares]).mean()
    usage = {"codebook_usage": torch.stack(used).mean(), "codebook_perplexity": perplexity}
    if len(sizes) > 1:
        groups = {f"codebook_usage_group_{g}": value for g, value in enumerate(used)}
        usage |= {"codebook_usage_pooled": pooled.double() / max(sizes), **groups}
    return usage
