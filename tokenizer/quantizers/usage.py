"""How much of a codebook is in use: usage and perplexity, from indices or from histograms.

For the frequencies p_k of the codes k = 0 .. K-1 in n tokens

    codebook_usage         fraction of codes with p_k > 0, in [0,1]
    codebook_perplexity    exp(-sum_k p_k log p_k), in [1,K]: as many equally frequent codes have the same entropy

Tokens with several indices have one codebook per index ("group"); then both are means over groups, and there are also
the usage of each group and that of one histogram which all groups share, the one that WeTok reports.

Tokens may also be those of several grids, one after the other, whose codes come from the same codebook ("scales"); then
there is also the usage of each scale. A coarse one has few tokens per image, and few codes may be all that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COUNTED_SIZE = 2**20  # codebooks above this size have no histogram; their indices are sorted instead


def code_usage(indices: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Usage of codebooks of G `sizes` by indices (n,), or (n,G) where a token has G of them.

    Negative indices are not counted. Up to `COUNTED_SIZE` codes the host does not wait for the device.

    Returns float64 scalars `codebook_usage` and `codebook_perplexity`; for G > 1 also `codebook_usage_pooled` and
    `codebook_usage_group_0`, `codebook_usage_group_1`, ...
    """
    groups = indices.reshape(len(indices), len(sizes)).long().unbind(1)
    largest = max(sizes)
    if largest <= COUNTED_SIZE:
        counts = [_histogram(group, largest) for group in groups]
        num_used = (sum(counts) > 0).sum()
    else:
        groups = [group[group >= 0] for group in groups]
        counts = [group.unique(return_counts=True)[1] for group in groups]
        num_used = torch.tensor(len(torch.cat(groups).unique()))
    return usage_of_counts(counts, sizes, num_used)


def tokens_by_scale(indices: Tensor, scales: Sequence[int]) -> dict[int, Tensor]:
    """Tokens (B,T), T the sum of s^2 over `scales` s -> {s: those of its s x s cells (B,s*s)}."""
    parts = indices.split([side**2 for side in scales], dim=1)
    return dict(zip(scales, parts, strict=True))


def images_of_window(window: Tensor, scales: Sequence[int]) -> Tensor:
    """The tokens (n,T) of the whole images that end a window of tokens (W,)."""
    num_tokens = sum(side**2 for side in scales)
    num_images = len(window) // num_tokens
    return window[len(window) - num_images * num_tokens :].view(num_images, num_tokens)


def usage_by_scale(indices: Tensor, size: int, scales: Sequence[int]) -> dict[str, Tensor]:
    """Usage of a codebook of `size` codes by the tokens of each scale: (B,T) -> `codebook_usage_scale_<s>`, ..."""
    usages = {}
    for side, tokens in tokens_by_scale(indices, scales).items():
        usages[f"codebook_usage_scale_{side}"] = code_usage(tokens.flatten(), [size])["codebook_usage"]
    return usages


def _histogram(indices: Tensor, size: int) -> Tensor:
    """How often each of `size` codes occurs in indices (n,) int64; negative ones fall into a place that is cut off."""
    places = torch.where(indices < 0, size, indices)
    return indices.new_zeros(size + 1).scatter_add_(0, places, torch.ones_like(places))[:size]


def usage_of_counts(counts: Sequence[Tensor], sizes: Sequence[int], pooled: Tensor) -> dict[str, Tensor]:
    """`code_usage` from the number of times that each code of a group occurred.

    Codes that never occurred may be left out. `pooled` is the number of different codes that any group used.
    """
    frequencies = [count.double() / count.sum().clamp_min(1) for count in counts]
    usages = [(p > 0).double().sum() / size for p, size in zip(frequencies, sizes, strict=True)]
    perplexities = [torch.exp(-torch.special.xlogy(p, p).sum()) for p in frequencies]
    metrics = {
        "codebook_usage": torch.stack(usages).mean(),
        "codebook_perplexity": torch.stack(perplexities).mean(),
    }
    if len(sizes) > 1:
        metrics["codebook_usage_pooled"] = pooled.double() / max(sizes)
        for group, usage in enumerate(usages):
            metrics[f"codebook_usage_group_{group}"] = usage
    return metrics
