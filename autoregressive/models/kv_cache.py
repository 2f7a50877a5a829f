"""Keys and values of the tokens so far, for decoding one token at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """Keys and values of one layer, (B, heads, length, head_dim) each."""

    keys: Tensor
    values: Tensor

    def update(self, position: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores `key` and `value` (B,heads,1,head_dim) at `position`; returns all keys and values up to there."""
        self.keys[:, :, position] = key[:, :, 0]
        self.values[:, :, position] = value[:, :, 0]
        return self.keys[:, :, : position + 1], self.values[:, :, : position + 1]


class KVCache:
    """Keys and values of all layers of a transformer, (layers, B, heads, length, head_dim) each."""

    def __init__(
        self,
        layers: int,
        batch_size: int,
        heads: int,
        length: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, batch_size, heads, length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def layer(self, number: int) -> LayerCache:
        """The part of layer `number`, counted from 0; it shares memory with the whole."""
        return LayerCache(self.keys[number], self.values[number])

    def keep_rows(self, count: int) -> None:
        """Drops all rows of the batch after the first `count`."""
        self.keys = self.keys[:, :count]
        self.values = self.values[:, :count]
