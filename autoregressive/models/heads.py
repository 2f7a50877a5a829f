"""The factorised head of WeTok (arXiv:2508.05599, section 3.4): k indices per token, one after the other.

A token's k indices are read by k embedding tables, summed. They are written by a small transformer over the k of one
position: it sees the hidden state of that position, then indices 0, 1, ... by the same tables, and predicts the next.

Shapes    hidden (B,N,C)      tokens (B,N,k) int64      logits (B,N,k,V), V the largest of the k sizes; -inf beyond a
          smaller one
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = tuple[Tensor, Tensor]  # keys and values of all layers, (layers, B, heads, k, head_dim)


class FactorizedHead(nn.Module):
    """See the module docstring. `layers` and `norm` are those of the transformer over the k indices."""

    def __init__(self, sizes: Sequence[int], width: int, layers: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.layers, self.norm = layers, norm
        self.outputs = nn.ModuleList(nn.Linear(width, size, bias=False) for size in sizes)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (...,k) -> (...,C)."""
        return sum(table(index) for table, index in zip(self.tables, tokens.unbind(-1), strict=True))

    def forward(self, hidden: Tensor, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Teacher-forced logits of all indices of all tokens."""
        read = [table(index) for table, index in zip(self.tables, tokens[..., :-1].unbind(-1), strict=False)]
        x = torch.stack([hidden, *read], dim=2).flatten(0, 1)
        for layer in self.layers:
            x = layer(x, rope)
        x = self.norm(x).unflatten(0, hidden.shape[:2])
        logits = [output(x[:, :, i]).float() for i, output in enumerate(self.outputs)]
        widest = max(part.shape[-1] for part in logits)
        return torch.stack([F.pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in logits], dim=2)

    def next_logits(self, x: Tensor, i: int, rope: Tensor | None, cache: Cache) -> Tensor:
        """Logits (B,V_i) of index i of one token; x is the hidden state (B,C) for i = 0, then index i - 1 (B,)."""
        x = (x if i == 0 else self.tables[i - 1](x))[:, None]
        for layer, keys, values in zip(self.layers, *cache, strict=True):
            x = layer(x, rope, (keys, values), i)
        return self.outputs[i](self.norm(x[:, 0])).float()
