"""2D rotary position embeddings on a square grid of tokens."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=8)
def rope2d_table(grid: int, head_dim: int, device: torch.device) -> Tensor:
    """(cos, sin) of the class slot and of each grid cell, (1 + grid^2, head_dim / 2, 2) float32.

    f_j = 10000 ** (-2j / (head_dim / 2)); the first half of the angles is row * f, the second column * f. The class
    slot is all zeros, as released: it turns queries and keys of the class token into zero vectors.
    """
    with torch.inference_mode(False):  # the cached table also serves training
        return _rope2d_table(grid, head_dim, device)


def _rope2d_table(grid: int, head_dim: int, device: torch.device) -> Tensor:
    half = head_dim // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2, dtype=torch.float32, device=device) / half)
    steps = torch.outer(torch.arange(grid, dtype=torch.float32, device=device), frequencies)
    rows = steps[:, None].expand(grid, grid, -1)
    columns = steps[None].expand(grid, grid, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    cells = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros_like(cells[:1]), cells])


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotates the channel pairs (2i, 2i+1) of x (B,heads,N,head_dim) by table (N,head_dim/2,2), in fp32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    real, imaginary = pairs.unbind(-1)
    cos, sin = table.unbind(-1)
    rotated = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)
    return rotated.flatten(-2).type_as(x)
