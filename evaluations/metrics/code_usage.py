"""How a set of images uses the codebook: fraction of codes in use, perplexity, distinct tokens, bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.world import World
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.usage import tokens_by_scale, usage_of_counts

MAX_COUNTED = 2**24  # codes per group; a larger codebook is not counted code by code
MIN_PENDING = 2**20  # tokens
MAX_TOKEN_BITS = 64  # tokens of more bits cannot be told apart by one int64


class CodeUsage:
    """How often each code of each group occurred, and which tokens (all groups together) occurred at all."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.sizes = quantizer.group_sizes
        largest = max(self.sizes)
        self.counts = torch.zeros(len(self.sizes), largest if largest <= MAX_COUNTED else 0, dtype=torch.float64)
        self.scales = quantizer.scales
        self.scale_counts = torch.zeros(len(self.scales), self.counts.shape[1], dtype=torch.float64)
        self.distinct = torch.zeros(0, dtype=torch.long)  # tokens as numbers, sorted
        self.pending: list[Tensor] = []  # tokens not yet in `distinct`: sorting at every batch would be quadratic

    def update(self, indices: Tensor) -> None:
        """Counts indices (B,N) or (B,N,G)."""
        columns = indices.reshape(-1, len(self.sizes)).cpu().unbind(1)
        num_counted = self.counts.shape[1]
        if num_counted:
            for group, column in enumerate(columns):
                self.counts[group] += torch.bincount(column, minlength=num_counted)
            for row, tokens in enumerate(tokens_by_scale(indices, self.scales).values() if self.scales else ()):
                self.scale_counts[row] += torch.bincount(tokens.flatten().cpu(), minlength=num_counted)

        # A token as one number: the digits are its indices. It wraps modulo 2^64, which keeps up to 64 bits apart.
        number = torch.zeros_like(columns[0])
        for column, size in zip(columns, self.sizes, strict=True):
            number = number * size + column
        self.pending.append(number)
        if sum(map(len, self.pending)) > max(MIN_PENDING, len(self.distinct)):
            self._settle()

    def _settle(self) -> None:
        """Moves the pending tokens into `distinct`."""
        self.distinct = torch.cat([self.distinct, *self.pending]).unique()
        self.pending = []

    def merged_scales(self, world: World) -> Tensor:
        """Counts (S,K) of each of S scales over all ranks; S is 0 where there are none. A collective."""
        return world.sum(self.scale_counts.to(world.device)).cpu()

    def merged(self, world: World) -> tuple[Tensor, int]:
        """Counts (G,K) over all ranks, and the number of distinct tokens. A collective: every rank calls it."""
        self._settle()

        # The distinct tokens of all ranks: each as many rows as the rank with most, the rest of which do not count.
        lengths = world.gather_rows(torch.tensor([len(self.distinct)], device=world.device)).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.long)
        padded[: len(self.distinct)] = self.distinct
        table = world.gather_rows(padded.to(world.device)).cpu().view(len(lengths), -1)
        rows = [row[:length] for row, length in zip(table, lengths, strict=True)]
        return world.sum(self.counts.to(world.device)).cpu(), len(torch.cat(rows).unique())


def usage_metrics(counts: Tensor, num_distinct: int, sizes: tuple[int, ...]) -> dict[str, float]:
    """Metrics of codebook usage from counts (G,K).

    `codebook_usage`, `codebook_perplexity` and their parts by group; with several groups `distinct_codes` too.
    """
    metrics: dict[str, float] = {}
    missing = not_counted(sizes)
    if "codebook_usage" not in missing:
        num_pooled = (counts.sum(0) > 0).sum()
        usage = usage_of_counts(list(counts), sizes, num_pooled)
        metrics = {name: value.item() for name, value in usage.items()}
    if len(sizes) > 1 and "distinct_codes" not in missing:
        metrics["distinct_codes"] = num_distinct
    return metrics


def scale_metrics(counts: Tensor, scales: Sequence[int]) -> dict[str, float]:
    """`codebook_usage_scale_<s>` of each of `scales`, from counts (S,K); nothing where codes are not counted."""
    if not counts.numel():
        return {}
    usages = (counts > 0).double().mean(1).tolist()
    return {f"codebook_usage_scale_{side}": usage for side, usage in zip(scales, usages, strict=True)}


def not_counted(sizes: tuple[int, ...]) -> dict[str, str]:
    """{metric: why} of those metrics for which a codebook is too large."""
    missing = {}
    if max(sizes) > MAX_COUNTED:
        missing["codebook_usage"] = f"an index has {max(sizes):,} codes; up to {MAX_COUNTED:,} are counted one by one"
    if sum(math.log2(size) for size in sizes) > MAX_TOKEN_BITS:
        missing["distinct_codes"] = f"a token has more than {MAX_TOKEN_BITS} bits; such tokens are not told apart"
    return missing


def compression(quantizer: Quantizer, num_pixels: float, num_tokens: float) -> dict[str, float]:
    """`bits_per_image` of the codes, and how many times as many its 24-bit pixels have; both per image."""
    bits = num_tokens * sum(math.log2(size) for size in quantizer.group_sizes)
    return {"bits_per_image": bits, "compression_ratio": 24 * num_pixels / bits}
