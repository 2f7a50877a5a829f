"""Precision and recall of a set of images (arXiv:1904.06991), as ADM measures them (arXiv:2105.05233).

    precision   fraction of the samples inside the manifold of the reference images
    recall      fraction of the reference images inside the manifold of the samples

The manifold of a set is the union of balls, one per image, each up to its third nearest neighbor in feature space.
Distances are in float32; `emulate_fp16` rounds every step as TensorFlow's float16 does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.devices import full_precision

NEIGHBOR = 3  # a ball reaches to this nearest neighbor, not counting the image itself
TILE_ELEMENTS = 2**24  # distances held at a time


def squared_distances(a: Tensor, b: Tensor, emulate_fp16: bool = False) -> Tensor:
    """Squared distances (n,m) of rows (n,D) and (m,D), not negative, float32."""
    if not emulate_fp16:
        # In place, so that only one table of this size is held.
        product = (a @ b.T).mul_(-2).add_(a.square().sum(1, keepdim=True))
        return product.add_(b.square().sum(1)).clamp_min_(0)

    a16, b16 = a.half().float(), b.half().float()
    norms_a = a16.square().half().float().sum(1).half()
    norms_b = b16.square().half().float().sum(1).half()
    return ((norms_a[:, None] - 2 * (a16 @ b16.T).half()) + norms_b).clamp_min(0).float()


def _tiles(rows: Tensor, num_others: int) -> list[Tensor]:
    """Rows cut so that the distances of a tile to `num_others` rows are at most `TILE_ELEMENTS`."""
    return list(rows.split(max(1, TILE_ELEMENTS // num_others)))


def radii(features: Tensor, emulate_fp16: bool = False) -> Tensor:
    """Squared distance of each row (n,D) to its `NEIGHBOR`-th nearest other row, (n,)."""
    num_nearest = NEIGHBOR + 1  # the row itself is among them
    tile_radii = [
        squared_distances(tile, features, emulate_fp16).topk(num_nearest, largest=False).values[:, -1]
        for tile in _tiles(features, len(features))
    ]
    return torch.cat(tile_radii)


def precision_recall(reference: Tensor, samples: Tensor, emulate_fp16: bool = False) -> tuple[float, float]:
    """(precision, recall) of samples (n,D) against reference features (m,D).

    Without `emulate_fp16`, `samples` are moved in place by the mean of the reference: 50,000 of them are 0.4 GB.
    Raises ValueError for sets of fewer than 4 images.
    """
    if min(len(reference), len(samples)) <= NEIGHBOR:
        raise ValueError(f"precision and recall need more than {NEIGHBOR} images in each set")

    with full_precision(reference.device):
        reference = reference.float()
        samples = samples.float()
        if not emulate_fp16:
            # Distances stay the same and their rounding errors shrink; float16 is emulated on features as they are.
            center = reference.mean(0)
            reference = reference - center
            samples = samples.sub_(center)
        reference_radii = radii(reference, emulate_fp16)
        sample_radii = radii(samples, emulate_fp16)

        # One pass over tiles of the samples decides both.
        num_inside = 0
        covered = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
        start = 0
        for tile in _tiles(samples, len(reference)):
            distances = squared_distances(tile, reference, emulate_fp16)
            num_inside += (distances <= reference_radii).any(1).sum().item()
            covered |= (distances <= sample_radii[start : start + len(tile), None]).any(0)
            start += len(tile)
    return num_inside / len(samples), covered.double().mean().item()
