"""Attention and the two transformer blocks of GigaTok's hybrid tokenizers, batch first.

QFormerBlock    a pre-norm DETR decoder layer (arXiv:2005.12872): the tokens attend to each other, then to a memory
ViTBlock        a pre-norm ViT encoder layer (arXiv:2010.11929)

Both are those of arXiv:2504.08736, section 3.1: GELU, an MLP of four times the width, no dropout. Nothing is masked but
a memory of which only a part is visible.

Shapes    tokens (B,N,C)      memory (B,M,C)      tables of positions (N,C) and (M,C)
`flops`   operations for one image (engine/flops.py), from N and M
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.flops import attention_flops, linear_flops


class MultiheadAttention(nn.Module):
    """Multi-head attention with separate inputs for queries, keys and values.

    Its parameters have the names and shapes of `torch.nn.MultiheadAttention`.
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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """Query (B,N,C), key and value (B,M,C) -> (B,N,C). `visible` (B,M) hides keys where it is false."""
        # The three projections lie one below the other in one parameter.
        query_weight, key_weight, value_weight = self.in_proj_weight.chunk(3)
        query_bias, key_bias, value_bias = self.in_proj_bias.chunk(3)
        q = self._split_heads(F.linear(query, query_weight, query_bias))
        k = self._split_heads(F.linear(key, key_weight, key_bias))
        v = self._split_heads(F.linear(value, value_weight, value_bias))

        # Attention of each head, and the heads side by side again.
        mask = None if visible is None else visible[:, None, None]
        attended = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def flops(self, queries: int, keys: int) -> int:
        """See the module docstring."""
        width = self.out_proj.in_features
        projections = 2 * linear_flops(self.out_proj, queries) + 2 * linear_flops(self.out_proj, keys)
        return projections + attention_flops(queries, keys, width)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B,N,C) -> (B,heads,N,C/heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def add_qk_norm(self) -> None:
        """Normalizes the queries and keys of each head from now on (arXiv:2302.05442, section 2)."""
        head_width = self.out_proj.in_features // self.heads
        self.q_norm = nn.LayerNorm(head_width)
        self.k_norm = nn.LayerNorm(head_width)


class QFormerBlock(nn.Module):
    """Self-attention, cross-attention to a memory, MLP.

    Positions are added to queries and keys, never to values.
    """

    parallel_unit = "shard"  # a block is one unit of sharding and activation checkpointing; see engine.parallel

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads)
        self.multihead_attn = MultiheadAttention(width, heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        tokens: Tensor,
        memory: Tensor,
        positions: Tensor,
        memory_positions: Tensor,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B,N,C), memory (B,M,C), positions (N,C), memory_positions (M,C) -> tokens (B,N,C).

        `visible` (B,M) hides parts of the memory where it is false.
        """
        # Tokens attend to each other.
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attn(normed + positions, normed + positions, normed)

        # Tokens attend to the memory, which is taken as it is: only the tokens are normed.
        normed = self.norm2(tokens)
        tokens = tokens + self.multihead_attn(normed + positions, memory + memory_positions, memory, visible)

        return tokens + self.linear2(F.gelu(self.linear1(self.norm3(tokens))))

    def flops(self, tokens: int, memory: int) -> int:
        """See the module docstring."""
        attention = self.self_attn.flops(tokens, tokens) + self.multihead_attn.flops(tokens, memory)
        return attention + linear_flops(self.linear1, tokens) + linear_flops(self.linear2, tokens)


class ViTBlock(nn.Module):
    """Self-attention and MLP. Positions are added once, before the first block, and not here."""

    parallel_unit = "shard"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B,N,C) -> tokens (B,N,C)."""
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attn(normed, normed, normed)
        return tokens + self.linear2(F.gelu(self.linear1(self.norm2(tokens))))

    def flops(self, tokens: int) -> int:
        """See the module docstring."""
        mlp = linear_flops(self.linear1, tokens) + linear_flops(self.linear2, tokens)
        return self.self_attn.flops(tokens, tokens) + mlp
