"""Kernel Inception Distance (arXiv:1801.01401): the squared maximum mean discrepancy of a cubic kernel.

The kernel is k(x,y) = (x.y/D + 1)^3. The estimate is unbiased and may be negative. Products and sums are in float64.

The default form averages over disjoint blocks of both sets, whose spread gives the error. The compatible form averages
over random subsets that overlap (torch-fidelity); its `std` is the spread of one subset, not the error of the mean, and
std/sqrt(subsets) is wrong as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluations.metrics.blocks import blocks_of
from evaluations.metrics.intervals import Estimate, of_blocks

TILE_ROWS = 1024  # of either set in one table of the kernel
BLOCK_SIZE = 1000  # images of the smaller set in a block, where that gives MIN_BLOCKS or more
MIN_BLOCKS = 10
MAX_BLOCKS = 50

# The compatible form.
NUM_SUBSETS = 100
SUBSET_SIZE = 1000
SUBSET_SEED = 2020


@dataclass(frozen=True)
class SubsetKid:
    """The compatible form: over subsets that overlap."""

    values: tuple[float, ...]  # of each subset
    subset_size: int

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """The spread of one subset (ddof 0), as it is published: not the error of the mean."""
        return float(np.std(self.values))


def mmd_unbiased(first: Tensor, second: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of rows (a,D) and (b,D).

    sum_{i!=j} k(x_i,x_j) / (a(a-1)) + sum_{i!=j} k(y_i,y_j) / (b(b-1)) - 2 mean_ij k(x_i,y_j).
    Raises ValueError for fewer than 2 rows.
    """
    a, b = len(first), len(second)
    if min(a, b) < 2:
        raise ValueError(f"the kernel distance needs 2 or more images in each set, found {a} and {b}")
    within = _sum_of_others(first) / (a * (a - 1)) + _sum_of_others(second) / (b * (b - 1))
    return within - 2 * _kernel_sum(first, second) / (a * b)


def _sum_of_others(features: Tensor) -> float:
    """The sum of the kernel over all pairs of different rows (n,D). It is symmetric: half of the tiles are enough."""
    tiles = features.split(TILE_ROWS)
    total = 0.0
    for number, tile in enumerate(tiles):
        total += _tile_sum(tile, tile) - _tile_diagonal(tile)
        total += 2 * sum(_tile_sum(tile, other) for other in tiles[number + 1 :])
    return total


def _kernel_sum(first: Tensor, second: Tensor) -> float:
    """The sum of the kernel over all pairs of a row of one set and a row of the other."""
    return sum(_tile_sum(tile, other) for tile in first.split(TILE_ROWS) for other in second.split(TILE_ROWS))


def _tile_sum(first: Tensor, second: Tensor) -> float:
    """The sum of the kernel over the pairs of two tiles."""
    values = (first.double() @ second.double().T).div_(first.shape[1]).add_(1).flatten()
    return torch.dot(values * values, values).item()


def _tile_diagonal(tile: Tensor) -> float:
    """The sum of the kernel over the pairs of a row with itself."""
    return (tile.double().square().sum(1) / tile.shape[1] + 1).pow(3).sum().item()


# ------------------------------------------------------------------------------------------------ forms
def num_kid_blocks(num_reference: int, num_generated: int) -> int:
    """How many blocks the sets are divided into: of 1,000 images of the smaller set, 10 to 50 of them."""
    blocks = min(MAX_BLOCKS, min(num_reference, num_generated) // BLOCK_SIZE)
    return blocks if blocks >= MIN_BLOCKS else MIN_BLOCKS


def kid_blocks(
    reference: Tensor, generated: Tensor, reference_order: Tensor, generated_order: Tensor, num_blocks: int
) -> Estimate:
    """The mean over disjoint blocks of both sets (n,D) and (m,D), with its error.

    Block i pairs the i-th part of the reference rows with the i-th part of the generated ones, in the given orders.
    Raises ValueError for blocks of fewer than 2 images.
    """
    pairs = zip(blocks_of(reference_order, num_blocks), blocks_of(generated_order, num_blocks), strict=True)
    return of_blocks([mmd_unbiased(reference[rows], generated[samples]) for rows, samples in pairs])


def kid_subsets(
    reference: Tensor,
    generated: Tensor,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = SUBSET_SEED,
) -> SubsetKid:
    """The compatible form: torch-fidelity's subsets, drawn by `numpy.random.RandomState(seed)`, generated ones first.

    Sets of fewer images than `subset_size` have subsets of their own size.
    """
    size = min(len(reference), len(generated), subset_size)
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(num_subsets):
        samples = torch.from_numpy(rng.choice(len(generated), size, replace=False))
        rows = torch.from_numpy(rng.choice(len(reference), size, replace=False))
        values.append(mmd_unbiased(reference[rows], generated[samples]))
    return SubsetKid(tuple(values), size)
