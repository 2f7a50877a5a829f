"""Attention, the Q-Former block (a pre-norm DETR decoder layer) and the plain ViT block, batch first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Multi-head attention with separate inputs for queries, keys and values; parameters as in
    `torch.nn.MultiheadAttention`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.q_norm = self.k_norm = nn.Identity()
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (B,N,C), key and value (B,M,C) -> (B,N,C). No mask."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2) for x, w, b in inputs)
        attended = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def add_qk_norm(self) -> None:
        """Normalises queries and keys of each head from now on (arXiv:2302.05442, section 2)."""
        width = self.out_proj.in_features // self.heads
        self.q_norm, self.k_norm = nn.LayerNorm(width), nn.LayerNorm(width)


class QFormerBlock(nn.Module):
    """Self-attention, cross-attention to a memory, MLP. Positions are added to queries and keys, never to values."""

    parallel_unit = "shard"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads)
        self.multihead_attn = MultiheadAttention(width, heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, memory: Tensor, positions: Tensor, memory_positions: Tensor) -> Tensor:
        """tokens (B,N,C), memory (B,M,C), positions (N,C), memory_positions (M,C) -> (B,N,C)."""
        n = self.norm1(tokens)
        tokens = tokens + self.self_attn(n + positions, n + positions, n)
        n = self.norm2(tokens)
        tokens = tokens + self.multihead_attn(n + positions, memory + memory_positions, memory)
        return tokens + self.linear2(F.gelu(self.linear1(self.norm3(tokens))))


class ViTBlock(nn.Module):
    """Pre-norm self-attention and MLP; positions are added once, before the first block."""

    parallel_unit = "shard"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B,N,C) -> (B,N,C)."""
        n = self.norm1(tokens)
        tokens = tokens + self.self_attn(n, n, n)
        return tokens + self.linear2(F.gelu(self.linear1(self.norm2(tokens))))
