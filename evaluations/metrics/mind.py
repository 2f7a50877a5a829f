"""Monge Inception Distance (arXiv:2605.06797): how far the images of one set must move to become the other.

MIND = 3 D / (M n) sum_i sum_j (sort(X u_i)_j - sort(Y u_i)_j)^2 over M random directions u_i: the sliced squared
Wasserstein distance, which between isotropic Gaussians is 3 Frechet distances. It is too large for few images, so the
number of images belongs to the number. Directions are those of torch-fidelity, projections are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluations.metrics.intervals import Estimate, jackknife

NUM_DIRECTIONS = 1000
SEED = 2020
MAX_IMAGES = 5000  # of each set in a result, as the paper recommends in the place of the 50,000 of FID
CHUNK_ELEMENTS = 2**20  # projections of one set held at a time
ROW_ELEMENTS = 2**22  # features converted to float64 at a time


def directions_of(dim: int, num_directions: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors (num_directions, dim), float32."""
    directions = torch.randn(num_directions, dim, generator=generator)
    return directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)


def mind(reference: Tensor, generated: Tensor, num_directions: int = NUM_DIRECTIONS, seed: int = SEED) -> float:
    """The distance of two sets (n,D) and (m,D). Of the larger one, as many random rows as the other has are taken."""
    generator = torch.Generator().manual_seed(seed)
    count = min(len(reference), len(generated))
    if len(reference) != len(generated):
        chosen = torch.randperm(max(len(reference), len(generated)), generator=generator)[:count]
        if len(reference) > count:
            reference = reference[chosen]
        else:
            generated = generated[chosen]
    directions = directions_of(reference.shape[1], num_directions, generator)
    return _distances(reference, generated, directions, [torch.arange(count)], [torch.arange(count)], False)[0]


def mind_jackknife(
    reference: Tensor,
    generated: Tensor,
    reference_blocks: Sequence[Tensor],
    generated_blocks: Sequence[Tensor],
    num_directions: int = NUM_DIRECTIONS,
    seed: int = SEED,
) -> Estimate:
    """The distance of the rows in the blocks, with the jackknife's error: block b is left out of both sets.

    All blocks have the same size (`evaluations.metrics.blocks.equal_blocks_of`). The directions stay the same ones;
    their own error is smaller. Raises ValueError for blocks of several sizes.
    """
    sizes = {len(rows) for rows in (*reference_blocks, *generated_blocks)}
    if len(sizes) != 1 or len(reference_blocks) != len(generated_blocks):
        raise ValueError(f"blocks of one size are needed, found {sorted(sizes)}")
    directions = directions_of(reference.shape[1], num_directions, torch.Generator().manual_seed(seed))
    whole, *without = _distances(reference, generated, directions, reference_blocks, generated_blocks, True)
    return jackknife(whole, without)


def _distances(
    reference: Tensor,
    generated: Tensor,
    directions: Tensor,
    reference_blocks: Sequence[Tensor],
    generated_blocks: Sequence[Tensor],
    leave_out: bool,
) -> list[float]:
    """The distance over all blocks; with `leave_out`, then those with one block left out each."""
    num_directions, dim = directions.shape
    size, num_blocks = len(reference_blocks[0]), len(reference_blocks)
    count = size * num_blocks
    reference_rows, generated_rows = torch.cat(list(reference_blocks)), torch.cat(list(generated_blocks))

    # A few directions at a time: sorted projections, then the same without a block.
    totals = torch.zeros(1 + (num_blocks if leave_out else 0), dtype=torch.float64)
    for chunk in directions.double().split(max(1, CHUNK_ELEMENTS // count)):
        first, first_order = _projections(reference, reference_rows, chunk).sort(1)
        second, second_order = _projections(generated, generated_rows, chunk).sort(1)
        totals[0] += (first - second).square().sum().cpu() / count
        for block in range(len(totals) - 1):
            # Row i of the projections is of block i // size. What remains of a direction has one length.
            rest = first[first_order.div(size, rounding_mode="floor") != block]
            other_rest = second[second_order.div(size, rounding_mode="floor") != block]
            totals[1 + block] += (rest - other_rest).square().sum().cpu() / (count - size)
    return (3 * dim / num_directions * totals).tolist()


def _projections(features: Tensor, rows: Tensor, directions: Tensor) -> Tensor:
    """The chosen rows of features (n,D) on directions (c,D) float64: (c, rows)."""
    directions = directions.to(features.device)
    chunks = rows.split(max(1, ROW_ELEMENTS // features.shape[1]))
    return torch.cat([directions @ features[chunk].double().T for chunk in chunks], dim=1)
