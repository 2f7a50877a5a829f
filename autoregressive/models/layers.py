"""Layers of the GPT and of the masked generator: RMSNorm, self-attention, SwiGLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.kv_cache import LayerStep
from autoregressive.models.rope import apply_rope
from engine.arithmetic import ceil_div
from engine.flops import attention_flops, linear_flops

NORM_EPS = 1e-5
MLP_MULTIPLE = 256  # the hidden width of the SwiGLU is rounded up to a multiple of this


def mlp_width(width: int) -> int:
    """Hidden width of the SwiGLU: 2/3 of 4 * width, rounded up to a multiple of 256."""
    exact = int(2 * (4 * width) / 3)
    return ceil_div(exact, MLP_MULTIPLE) * MLP_MULTIPLE


class RMSNorm(nn.Module):
    """Root-mean-square norm: computed in fp32, cast back, then times a gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + NORM_EPS)
        return normed.type_as(x) * self.weight


class Attention(nn.Module):
    """Self-attention. `qk_norm`: layer norm of the queries and keys of each head, before any rotation.

    `is_causal`: each token sees those up to itself; else all see all.
    """

    def __init__(
        self, width: int, heads: int, dropout: float, qk_norm: bool = False, *, is_causal: bool = True
    ) -> None:
        super().__init__()
        self.heads = heads
        self.is_causal = is_causal
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: Tensor | None, cached: LayerStep | None = None) -> Tensor:
        """x (B,N,C), rope (N,head_dim/2,2) or None. With `cached`, x is the one token that is decoded."""
        q, k, v = self._split_heads(self.wqkv(x))
        q = self.q_norm(q)
        k = self.k_norm(k)
        if rope is not None:
            q = apply_rope(q, rope)
            k = apply_rope(k, rope)

        # The one token of a cached step may see all that is stored.
        mask = None
        if cached is not None:
            k, v = cached.extend(k, v)
            mask = cached.mask
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.is_causal and cached is None)
        return self.dropout(self.wo(out.transpose(1, 2).flatten(2)))

    def flops(self, num_tokens: int) -> int:
        """Operations on one sequence (engine/flops.py)."""
        projections = linear_flops(self.wqkv, num_tokens) + linear_flops(self.wo, num_tokens)
        return projections + attention_flops(num_tokens, num_tokens, self.wo.in_features)

    def _split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Splits (B,N,3C) into queries, keys and values, each (B,heads,N,head_dim)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        return q, k, v


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

    def flops(self, num_tokens: int) -> int:
        """Operations on one sequence (engine/flops.py)."""
        return sum(linear_flops(layer, num_tokens) for layer in (self.w1, self.w2, self.w3))


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    parallel_unit = "shard"

    def __init__(
        self, width: int, heads: int, dropout: float, qk_norm: bool = False, *, is_causal: bool = True
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout, qk_norm, is_causal=is_causal)
        self.feed_forward = FeedForward(width, dropout)
        self.attention_norm = RMSNorm(width)
        self.ffn_norm = RMSNorm(width)

    def forward(self, x: Tensor, rope: Tensor | None, cached: LayerStep | None = None) -> Tensor:
        """x (B,N,C); the other arguments are those of `Attention.forward`."""
        x = x + self.attention(self.attention_norm(x), rope, cached)
        return x + self.feed_forward(self.ffn_norm(x))

    def flops(self, num_tokens: int) -> int:
        """Operations on one sequence (engine/flops.py)."""
        return self.attention.flops(num_tokens) + self.feed_forward.flops(num_tokens)
