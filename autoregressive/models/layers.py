"""Layers of the GPT: RMSNorm, causal attention, SwiGLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.rope import apply_rope

NORM_EPS = 1e-5


def mlp_width(width: int) -> int:
    """Hidden width of the SwiGLU: 2/3 of 4 * width, rounded up to a multiple of 256."""
    return -(-int(2 * (4 * width) / 3) // 256) * 256


class RMSNorm(nn.Module):
    """Root-mean-square norm: computed in fp32, cast back, then times a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + NORM_EPS)
        return normed.type_as(x) * self.weight


Cached = tuple[Tensor, Tensor] | None  # keys and values of one layer


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.q_norm = self.k_norm = nn.Identity()

    def add_qk_norm(self) -> None:
        """Normalises queries and keys of each head from now on, before any rotation."""
        width = self.wo.in_features // self.heads
        self.q_norm, self.k_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, rope: Tensor | None, cached: Cached = None, position: int = 0) -> Tensor:
        """x (B,N,C), rope (N,head_dim/2,2) or None.

        With `cached` keys and values (B,heads,length,head_dim), x is the one token at `position`.
        """
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.wqkv(x).chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = apply_rope(q, rope), apply_rope(k, rope)
        if cached is not None:
            keys, values = cached
            keys[:, :, position], values[:, :, position] = k[:, :, 0], v[:, :, 0]
            k, v = keys[:, :, : position + 1], values[:, :, : position + 1]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=cached is None)
        return self.dropout(self.wo(out.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        hidden = mlp_width(width)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    parallel_unit = "shard"

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)
        self.attention_norm, self.ffn_norm = RMSNorm(width), RMSNorm(width)

    def forward(self, x: Tensor, rope: Tensor | None, cached: Cached = None, position: int = 0) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, cached, position)
        return x + self.feed_forward(self.ffn_norm(x))
