"""The parts into which the images of a set are divided, from which the errors of its numbers follow.

Row i of a table of features is the image number i: sample i of a generation, or the i-th image by sorted name. Samples
are often sorted by class, so the parts are cut from a seeded permutation of the rows. It depends on nothing but the
number of images, and is the same for every metric: two results over the same images have the same parts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

NUM_BLOCKS = 10  # of the jackknife
NUM_FOLDS = 5  # of metrics of nearest neighbors
SEED = 2026

RULE = f"{NUM_BLOCKS} blocks and {NUM_FOLDS} folds of numpy.random.RandomState({SEED}).permutation(count)"


def block_order(count: int) -> Tensor:
    """The seeded permutation (count,) int64 of `count` images, of which blocks and folds are parts.

    `RandomState` is the generator of numpy whose streams never change between versions (NEP 19).
    """
    return torch.from_numpy(np.random.RandomState(SEED).permutation(count).astype(np.int64))


def stored_order(count: int) -> Tensor:
    """The images as they are stored, (count,) int64: for rows that are in random order already."""
    return torch.arange(count)


def blocks_of(order: Tensor, num_blocks: int) -> list[Tensor]:
    """The rows of each block: block b is order[b m / B : (b+1) m / B], so sizes differ by one at most."""
    count = len(order)
    bounds = [block * count // num_blocks for block in range(num_blocks + 1)]
    return [order[low:high] for low, high in pairwise(bounds)]


def equal_blocks_of(order: Tensor, num_blocks: int) -> list[Tensor]:
    """Blocks of the same size m // B; the rows that remain are in none."""
    size = len(order) // num_blocks
    return [order[block * size : (block + 1) * size] for block in range(num_blocks)]


def folds_of(order: Tensor, num_folds: int) -> list[Tensor]:
    """The rows of each fold: fold i is order[i :: F]."""
    return [order[fold::num_folds] for fold in range(num_folds)]


def block_numbers(count: int) -> Tensor:
    """The block of each image, (count,) int64, as `blocks_of` divides `block_order`."""
    numbers = torch.empty(count, dtype=torch.int64)
    for block, rows in enumerate(blocks_of(block_order(count), NUM_BLOCKS)):
        numbers[rows] = block
    return numbers
