"""Square maps at another size, as products with fixed matrices: area means to shrink, bicubic to enlarge.

Both are separable: a map M becomes R M R^T. `F.interpolate` computes the same (`area`; `bicubic` without antialiasing,
align_corners false), but its gradients have no fixed order of sums on a GPU, and ONNX lacks means over areas of unequal
size.

Shapes    maps (B,C,s,s) float32 -> (B,C,t,t)
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

CUBIC = -0.75  # the parameter of the bicubic kernel (Keys, 1981) that PyTorch uses
Rows = tuple[tuple[float, ...], ...]  # a matrix


def shrink(maps: Tensor, side: int) -> Tensor:
    """Each new cell is the mean of the cells that it overlaps."""
    return _resampled(maps, area_rows(maps.shape[-1], side))


def enlarge(maps: Tensor, side: int) -> Tensor:
    """Bicubic."""
    return _resampled(maps, cubic_rows(maps.shape[-1], side))


def _resampled(maps: Tensor, rows: Rows) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float32, device=maps.device)
    return matrix @ maps @ matrix.T


@lru_cache
def area_rows(size: int, new_size: int) -> Rows:
    """The matrix (new_size, size) of means over whole cells."""
    rows = []
    for position in range(new_size):
        start = position * size // new_size
        end = -(-(position + 1) * size // new_size)
        rows.append(tuple(1 / (end - start) if start <= cell < end else 0.0 for cell in range(size)))
    return tuple(rows)


@lru_cache
def cubic_rows(size: int, new_size: int) -> Rows:
    """The matrix (new_size, size) of a bicubic interpolation, which reads the border cell beyond the border."""
    rows = []
    for position in range(new_size):
        center = (position + 0.5) * size / new_size - 0.5
        first = math.floor(center) - 1
        row = [0.0] * size
        for tap in range(first, first + 4):
            row[min(max(tap, 0), size - 1)] += _kernel(abs(center - tap))
        rows.append(tuple(row))
    return tuple(rows)


def _kernel(distance: float) -> float:
    """The weight of a cell at a distance below 2."""
    if distance <= 1:
        return ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    return ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
