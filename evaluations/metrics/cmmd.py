"""CMMD (arXiv:2401.09603): the maximum mean discrepancy of unit features under a Gaussian kernel.

CMMD = 1000 [mean k(x,x') + mean k(y,y') - 2 mean k(x,y)] with k = exp(-|x-y|^2 / (2 sigma^2)), sigma = 10, over all
pairs, those of an image with itself included, as published: it is biased upward by few images. The three means are
nearly equal, so sums are of k - 1, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluations.metrics.blocks import NUM_BLOCKS, blocks_of
from evaluations.metrics.intervals import Estimate, jackknife

SIGMA = 10.0
SCALE = 1000.0
TILE_ROWS = 1024  # of either set in one table of the kernel


def cmmd_jackknife(reference: Tensor, generated: Tensor, order: Tensor, num_blocks: int = NUM_BLOCKS) -> Estimate:
    """CMMD of two sets (n,D) and (m,D), with the jackknife's error: blocks of `order` (m,) are left out of the second.

    The sums of the kernel between blocks give every value without a block. Raises ValueError for fewer images than
    blocks.
    """
    blocks = blocks_of(order, num_blocks)
    sizes = torch.tensor([len(rows) for rows in blocks], dtype=torch.float64)
    if sizes.min() < 1:
        raise ValueError(f"{num_blocks} blocks need as many images, found {len(generated)}")

    # Sums between the blocks of the generated images, and of each with the reference.
    samples = [generated[rows] for rows in blocks]
    among = torch.zeros(num_blocks, num_blocks, dtype=torch.float64)
    for i in range(num_blocks):
        among[i, i] = _sum_within(samples[i])
        for j in range(i):
            among[i, j] = among[j, i] = _sum_between(samples[i], samples[j])
    across = torch.tensor([_sum_between(reference, rows) for rows in samples], dtype=torch.float64)
    within = _sum_within(reference) / len(reference) ** 2

    def value(included: Tensor) -> float:
        count = (sizes * included).sum()
        mean_among = included @ among @ included / count**2
        mean_across = across @ included / (count * len(reference))
        return SCALE * (within + mean_among - 2 * mean_across).item()

    everything = torch.ones(num_blocks, dtype=torch.float64)
    without = 1 - torch.eye(num_blocks, dtype=torch.float64)
    return jackknife(value(everything), [value(included) for included in without])


def _sum_within(features: Tensor) -> float:
    """The sum of k - 1 over all pairs of rows (n,D). It is symmetric: half of the tiles are enough."""
    tiles = features.split(TILE_ROWS)
    total = 0.0
    for number, tile in enumerate(tiles):
        total += _tile_sum(tile, [tile]) + 2 * _tile_sum(tile, tiles[number + 1 :])
    return total


def _sum_between(first: Tensor, second: Tensor) -> float:
    """The sum of k - 1 over all pairs of a row of one set and a row of the other."""
    return sum(_tile_sum(tile, second.split(TILE_ROWS)) for tile in first.split(TILE_ROWS))


def _tile_sum(tile: Tensor, others: Sequence[Tensor]) -> float:
    """The sum of k - 1 over the pairs of a tile with other tiles. Of unit rows, |x-y|^2 = 2 - 2 x.y."""
    rows = _unit(tile)
    return sum(((rows @ _unit(other).T - 1) / SIGMA**2).expm1_().sum().item() for other in others)


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1, float64."""
    return torch.nn.functional.normalize(rows.double(), dim=1)
