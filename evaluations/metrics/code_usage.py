"""How a set of images uses the codebook: shares, perplexities, distinct tokens, bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from engine.world import World
from tokenizer.quantizers.usage import usage_of_counts

MAX_COUNTED = 2**24  # codes of a group; a larger codebook is not counted code by code


MIN_PENDING = 2**20  # tokens


MAX_TOKEN_BITS = 64  # tokens of more bits are not told apart


class CodeUsage:
    """How often each code of each group occurred, and which tokens (all groups together), over all ranks."""

    def __init__(self, quantizer: nn.Module) -> None:
        self.sizes = quantizer.group_sizes
        largest = max(self.sizes)
        self.counts = torch.zeros(len(self.sizes), largest if largest <= MAX_COUNTED else 0, dtype=torch.float64)
        self.tokens = torch.zeros(0, dtype=torch.long)  # distinct ones, as numbers
        self.pending: list[Tensor] = []  # not yet among them: sorting at every batch would be quadratic

    def update(self, indices: Tensor) -> None:
        """Indices (B,N) or (B,N,G)."""
        columns = indices.reshape(-1, len(self.sizes)).cpu().unbind(1)
        if self.counts.shape[1]:
            for group, column in enumerate(columns):
                self.counts[group] += torch.bincount(column, minlength=self.counts.shape[1])
        number = torch.zeros_like(columns[0])
        for column, size in zip(columns, self.sizes, strict=True):
            number = number * size + column  # modulo 2^64, which keeps up to 64 bits apart
        self.pending.append(number)
        if sum(map(len, self.pending)) > max(MIN_PENDING, len(self.tokens)):
            self._settle()

    def _settle(self) -> None:
        self.tokens, self.pending = torch.cat([self.tokens, *self.pending]).unique(), []

    def merged(self, world: World) -> tuple[Tensor, int]:
        """Counts (G,K) of all ranks, and the number of distinct tokens."""
        self._settle()
        count = torch.zeros(world.size, dtype=torch.long)
        count[world.rank] = len(self.tokens)
        lengths = world.sum(count.to(world.device)).cpu()
        table = torch.zeros(world.size, int(lengths.max()), dtype=torch.long)
        table[world.rank, : len(self.tokens)] = self.tokens
        table = world.sum(table.to(world.device)).cpu()
        rows = [row[:length] for row, length in zip(table, lengths.tolist(), strict=True)]
        return world.sum(self.counts.to(world.device)).cpu(), len(torch.cat(rows).unique())


def usage_metrics(counts: Tensor, tokens: int, sizes: tuple[int, ...]) -> dict[str, float]:
    """`codebook_usage`, `codebook_perplexity` and their parts by group; with several groups `distinct_codes` too."""
    metrics, missing = {}, not_counted(sizes)
    if "codebook_usage" not in missing:
        found = usage_of_counts(list(counts), sizes, (counts.sum(0) > 0).sum())
        metrics = {name: value.item() for name, value in found.items()}
    if len(sizes) > 1 and "distinct_codes" not in missing:
        metrics["distinct_codes"] = tokens
    return metrics


def not_counted(sizes: tuple[int, ...]) -> dict[str, str]:
    """Which of these metrics a codebook is too large for, and why."""
    missing = {}
    if max(sizes) > MAX_COUNTED:
        missing["codebook_usage"] = f"an index has {max(sizes):,} codes; up to {MAX_COUNTED:,} are counted one by one"
    if sum(math.log2(size) for size in sizes) > MAX_TOKEN_BITS:
        missing["distinct_codes"] = f"a token has more than {MAX_TOKEN_BITS} bits; such tokens are not told apart"
    return missing


def bits_of(quantizer: nn.Module, pixels: float, tokens: float) -> dict[str, float]:
    """Bits of the codes of an image of `pixels` pixels and `tokens` tokens, and its 24-bit pixels over them."""
    bits = tokens * sum(math.log2(size) for size in quantizer.group_sizes)
    return {"bits_per_image": bits, "compression_ratio": 24 * pixels / bits}
