"""Keys and values of the tokens so far, for decoding one token at a time.

A position is a number, or on a GPU a tensor. With a number, attention reads a slice: what is filled and no more. With a
tensor all shapes are static, so that one recorded step serves every position: attention reads the whole cache under a
mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Position = int | Tensor  # a number, or a tensor (1,) int64 on the device of the cache


@dataclass(frozen=True)
class LayerStep:
    """The cache of one layer, (B, heads, length, head_dim) each, while the token at `position` is decoded."""

    keys: Tensor
    values: Tensor
    position: Position
    mask: Tensor | None  # (1, length) bool, true where the token may look; None: everywhere

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores `key` and `value` (B,heads,1,head_dim); returns all keys and values that attention reads."""
        if isinstance(self.position, int):
            self.keys.select(2, self.position).copy_(key.select(2, 0))
            self.values.select(2, self.position).copy_(value.select(2, 0))
            end = self.position + 1
            return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)

        self.keys.index_copy_(2, self.position, key)
        self.values.index_copy_(2, self.position, value)
        return self.keys, self.values


class KVCache:
    """Keys and values of all layers of a transformer, (layers, B, heads, length, head_dim) each."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.positions = torch.arange(keys.shape[3], device=keys.device)

    @classmethod
    def empty(
        cls,
        layers: int,
        batch_size: int,
        heads: int,
        length: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KVCache:
        """The cache before the first token."""
        shape = (layers, batch_size, heads, length, head_dim)
        keys = torch.zeros(shape, dtype=dtype, device=device)
        return cls(keys, torch.zeros_like(keys))

    def step(self, position: Position) -> list[LayerStep]:
        """The layers of the cache for the token at `position`; they share memory with the whole."""
        mask = None if isinstance(position, int) else (self.positions <= position)[None]
        return [LayerStep(self.keys[n], self.values[n], position, mask) for n in range(len(self.keys))]

    def keep_rows(self, count: int) -> None:
        """Drops all rows of the batch after the first `count`."""
        self.keys = self.keys[:, :count]
        self.values = self.values[:, :count]

    def take_rows(self, other: KVCache) -> None:
        """Copies the first rows of `other`, as many as there are here."""
        count = self.keys.shape[1]
        self.keys.copy_(other.keys[:, :count])
        self.values.copy_(other.values[:, :count])

    def clear(self) -> None:
        """Forgets all tokens. What lies behind the mask must be finite, as zero times NaN is NaN."""
        self.keys.zero_()
        self.values.zero_()
