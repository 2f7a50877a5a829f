"""What every quantizer returns, the window of recent indices, and the two ways to send a gradient through a choice.

Shapes    z, z_q (B, N, D) float32      indices int64: (B, N) of a quantizer with one index per token (`num_groups` 1),
          (B, N, G) of one with G of them; index g lies in [0, group_sizes[g])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.world import gather_rows
from tokenizer.quantizers.usage import code_usage

USAGE_WINDOW = 65_536  # recent training tokens, over all ranks, that usage and perplexity describe


@dataclass
class Quantized:
    """The result of a quantizer. `losses` are unweighted scalars; only those that were asked for."""

    z_q: Tensor
    indices: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module):
    """What all quantizers share: the sizes of their codebooks, and a window of the last 65,536 training tokens."""

    group_sizes: tuple[int, ...]  # codes of each of the `num_groups` indices of a token; `codebook_size`: the largest
    codebook_dim: int  # channels of a latent, all groups together
    loss_names: frozenset[str] = frozenset({"codebook", "commitment", "entropy"})  # those that it has
    recent_indices: Tensor

    def __init__(self, group_sizes: Sequence[int], codebook_dim: int, unseen: int = -1) -> None:
        super().__init__()
        self.group_sizes, self.num_groups = tuple(group_sizes), len(group_sizes)
        self.codebook_size, self.codebook_dim = max(group_sizes), codebook_dim
        shape = (USAGE_WINDOW,) if self.num_groups == 1 else (USAGE_WINDOW, self.num_groups)
        dtype = torch.int32 if self.codebook_size < 2**31 else torch.int64
        self.register_buffer("recent_indices", torch.full(shape, unseen, dtype=dtype))

    @torch.no_grad()
    def remember(self, indices: Tensor) -> None:
        """Adds the indices of one batch, of all ranks, to the window."""
        new = gather_rows(indices.flatten(0, 1).to(self.recent_indices.dtype))[-USAGE_WINDOW:]
        self.recent_indices = torch.cat([self.recent_indices[len(new) :], new])

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        """Latents (B,N,D). `quantize=False` passes them through; `entropy` adds its terms."""
        raise NotImplementedError

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Indices (B,N) or (B,N,G) -> exact quantized latents (B,N,D)."""
        raise NotImplementedError

    def usage(self) -> dict[str, Tensor]:
        """`code_usage` of the window."""
        seen = self.recent_indices
        return code_usage(seen[seen.view(len(seen), -1)[:, 0] >= 0], self.group_sizes)


def entropy_terms(sample: Tensor, codebook: Tensor | None, codebook_weight: float = 1.0) -> dict[str, Tensor]:
    """The entropy loss and its two parts (nats); without a codebook entropy only the other."""
    if codebook is None:
        return {"sample_entropy": sample, "entropy": sample}
    return {"sample_entropy": sample, "codebook_entropy": codebook, "entropy": sample - codebook_weight * codebook}
