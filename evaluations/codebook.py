"""How a set of images uses the codebook: shares, perplexities, bits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed import World

MAX_COUNTED = 2**24  # codes of a group; a larger codebook is not counted code by code


class CodeUsage:
    """How often each code of each group occurred, over all ranks: counts (G,K)."""

    def __init__(self, quantizer: nn.Module) -> None:
        self.groups, self.size = getattr(quantizer, "num_groups", 1), quantizer.codebook_size
        self.counts = torch.zeros(self.groups, self.size if self.size <= MAX_COUNTED else 0, dtype=torch.float64)

    def update(self, indices: Tensor) -> None:
        """Indices (B,N) or (B,N,G)."""
        if self.counts.shape[1]:
            for group, column in enumerate(indices.reshape(-1, self.groups).T.cpu()):
                self.counts[group] += torch.bincount(column, minlength=self.size)

    def merged(self, world: World) -> Tensor:
        return world.sum(self.counts.to(world.device)).cpu()


def usage_metrics(counts: Tensor) -> dict[str, Any]:
    """`codebook_usage` and `codebook_perplexity` of counts (G,K): means over groups, and with several groups each of
    them and that of all groups pooled into one table (what WeTok reports).
    """
    if not counts.shape[1]:
        return {}
    p = counts / counts.sum(1, keepdim=True)
    used, perplexity = (counts > 0).double().mean(1), torch.exp(-torch.special.xlogy(p, p).sum(1))
    metrics: dict[str, Any] = {"codebook_usage": used.mean().item(), "codebook_perplexity": perplexity.mean().item()}
    if len(counts) > 1:
        metrics |= {"codebook_usage_per_group": used.tolist(), "codebook_perplexity_per_group": perplexity.tolist()}
        metrics["codebook_usage_pooled"] = (counts.sum(0) > 0).double().mean().item()
    return metrics


def bits_of(tokenizer: nn.Module, pixels: int, tokens: int) -> dict[str, float]:
    """Bits of the codes of an image of `pixels` pixels, and 24-bit pixels over them."""
    bits = tokens * getattr(tokenizer.quantizer, "num_groups", 1) * math.log2(tokenizer.quantizer.codebook_size)
    return {"bits_per_image": bits, "compression_ratio": 24 * pixels / bits}
