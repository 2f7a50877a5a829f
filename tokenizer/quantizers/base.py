"""What every quantizer returns, the window of recent indices, and the two ways to send a gradient through a choice.

Shapes    z, z_q (B, N, D) float32      indices int64: (B, N) of a quantizer with one index per token (`num_groups` 1),
          (B, N, G) of one with G of them; index g lies in [0, group_sizes[g])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.distributed import gather_rows

USAGE_WINDOW = 65_536  # recent training tokens, over all ranks, that usage and perplexity describe
COUNTED_SIZE = 2**20  # larger codebooks are counted by sorting the indices


@dataclass
class Quantized:
    """The result of a quantizer. `losses` are unweighted scalars; only those that were asked for."""

    z_q: Tensor
    indices: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


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


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Value of `z_q`, gradient of `z` (van den Oord et al., arXiv:1711.00937, section 3.2)."""
    return z + (z_q - z).detach()


def rotation_trick(z: Tensor, z_q: Tensor) -> Tensor:
    """Value of `z_q`; the gradient to `z` is rotated by the reflection pair that turns z into z_q (arXiv:2410.06424,
    Eq. 4).

    The direction of `z` alone enters: z is divided by its norm first, as in the released code of GigaTok, so for
    l2-normalised latents nothing changes. The value equals `z_q` up to about 4e-6.
    """
    eps = 1e-6
    z = z / z.norm(dim=-1, keepdim=True)
    z_norm, q_norm = z.norm(dim=-1, keepdim=True), z_q.norm(dim=-1, keepdim=True)
    u, v = (z / (z_norm + eps)).detach(), (z_q / (q_norm + eps)).detach()
    r = u + v
    r = r / r.norm(dim=-1, keepdim=True)
    rotated = z - 2 * (z * r).sum(-1, keepdim=True) * r + 2 * (z * u).sum(-1, keepdim=True) * v
    return rotated * (q_norm / (z_norm + eps)).detach()
