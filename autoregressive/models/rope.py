"""2D rotary position embeddings on a square grid of tokens (arXiv:2406.06525, as released)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from autoregressive.models.kv_cache import Position


class NoRope:
    """Positions without rotation."""

    def rows(self, first: int, count: int, device: torch.device) -> None:
        """Nothing to rotate by."""

    def rows_at(self, rows: Tensor) -> None:
        """Nothing to rotate by."""

    def row(self, position: Position, device: torch.device) -> None:
        """Nothing to rotate by."""


@dataclass(frozen=True)
class Rope2D:
    """The rotary table of a square grid of `grid` x `grid` tokens, for heads of `head_dim` channels."""

    grid: int
    head_dim: int

    def rows(self, first: int, count: int, device: torch.device) -> Tensor:
        """The rows of `count` positions from `first` on, (count, head_dim / 2, 2)."""
        return rope2d_table(self.grid, self.head_dim, device)[first : first + count]

    def rows_at(self, rows: Tensor) -> Tensor:
        """The given rows (B,N) of each sequence, (B,1,N,head_dim/2,2): the same for all heads."""
        return rope2d_table(self.grid, self.head_dim, rows.device)[rows][:, None]

    def row(self, position: Position, device: torch.device) -> Tensor:
        """The row of the token that is decoded at `position`, (1, head_dim / 2, 2)."""
        if isinstance(position, int):
            return self.rows(position, 1, device)
        return rope2d_table(self.grid, self.head_dim, device).index_select(0, position)


Rope = NoRope | Rope2D


@lru_cache(maxsize=8)
def rope2d_table(grid: int, head_dim: int, device: torch.device) -> Tensor:
    """(cos, sin) of the class slot and of each grid cell, (1 + grid^2, head_dim / 2, 2) float32.

    f_j = 10000 ** (-2j / (head_dim / 2)); the first half of the angles is row * f, the second column * f. The class
    slot is all zeros, as released: it turns queries and keys of the class token into zero vectors.
    """
    # The table outlives the call that makes it: it must serve training after inference, and real passes after the fake
    # ones of a memory plan.
    with torch.inference_mode(False), unset_fake_temporarily():
        return _rope2d_table(grid, head_dim, device)


def _rope2d_table(grid: int, head_dim: int, device: torch.device) -> Tensor:
    half = head_dim // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    steps = torch.outer(torch.arange(grid, dtype=torch.float32, device=device), frequencies)

    # One row of angles per cell, cells in row-major order.
    rows = steps[:, None].expand(grid, grid, -1)
    columns = steps[None].expand(grid, grid, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)

    cells = torch.stack([angles.cos(), angles.sin()], dim=-1)
    class_slot = torch.zeros_like(cells[:1])
    return torch.cat([class_slot, cells])


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotates the channel pairs (2i, 2i+1) of x (B,heads,N,head_dim) by table (N,head_dim/2,2), in fp32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    real, imaginary = pairs.unbind(-1)
    cos, sin = table.unbind(-1)
    rotated = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)
    return rotated.flatten(-2).type_as(x)
