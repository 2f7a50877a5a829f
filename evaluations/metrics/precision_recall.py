"""Precision and recall of a set of images (arXiv:1904.06991), as ADM measures them (arXiv:2105.05233).

    precision   fraction of the samples inside the manifold of the reference images
    recall      fraction of the reference images inside the manifold of the samples

The manifold of a set is the union of balls, one per image, each up to its third nearest neighbor in feature space.
Distances are in float32; `emulate_fp16` rounds every step as TensorFlow's float16 does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.devices import full_precision

NEIGHBOR = 3  # a ball reaches to this nearest neighbor, not counting the image itself
TILE_ELEMENTS = 2**24  # distances, or squared features, held at a time


@dataclass(frozen=True)
class FeatureSet:
    """Features of images with their squared lengths, which are computed once for all distances."""

    rows: Tensor  # (n,D) float32; in emulation rounded to float16
    norms: Tensor  # (n,) squared length of each row: float32, in emulation float16

    @classmethod
    def of(cls, rows: Tensor, emulate_fp16: bool = False) -> FeatureSet:
        """The set of features (n,D) float32."""
        if emulate_fp16:
            rows = rows.half().float()
        blocks = rows.split(max(1, TILE_ELEMENTS // rows.shape[1]))
        return cls(rows, torch.cat([_squared_norms(block, emulate_fp16) for block in blocks]))

    def __len__(self) -> int:
        return len(self.rows)

    def of_rows(self, indices: Tensor) -> FeatureSet:
        """Some of its rows (k,)."""
        return FeatureSet(self.rows[indices], self.norms[indices])

    def tiles(self, num_others: int) -> Iterator[FeatureSet]:
        """Its rows, cut so that the distances of a tile to `num_others` rows are at most `TILE_ELEMENTS`."""
        size = max(1, TILE_ELEMENTS // num_others)
        return map(FeatureSet, self.rows.split(size), self.norms.split(size))


def _squared_norms(rows: Tensor, emulate_fp16: bool) -> Tensor:
    """Squared length of each row (n,D): (n,)."""
    if not emulate_fp16:
        return rows.square().sum(1)
    return rows.square().half().float().sum(1).half()


def squared_distances(a: FeatureSet, b: FeatureSet) -> Tensor:
    """Squared distances (n,m) of the rows of two sets, not negative, float32."""
    product = a.rows @ b.rows.T
    if a.norms.dtype == torch.float16:  # emulated: every step is rounded
        return ((a.norms[:, None] - 2 * product.half()) + b.norms).clamp_min(0).float()

    # In place, so that only one table of this size is held.
    return product.mul_(-2).add_(a.norms[:, None]).add_(b.norms).clamp_min_(0)


def radii(features: FeatureSet) -> Tensor:
    """Squared distance of each row to its `NEIGHBOR`-th nearest other row, (n,)."""
    num_nearest = NEIGHBOR + 1  # the row itself is among them
    return torch.cat(
        [
            squared_distances(tile, features).topk(num_nearest, largest=False).values[:, -1]
            for tile in features.tiles(len(features))
        ]
    )


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
        real = FeatureSet.of(reference, emulate_fp16)
        generated = FeatureSet.of(samples, emulate_fp16)
        real_radii = radii(real)
        generated_radii = radii(generated)

        # One pass over tiles of the samples decides both.
        num_inside = 0
        covered = torch.zeros(len(real), dtype=torch.bool, device=reference.device)
        start = 0
        for tile in generated.tiles(len(real)):
            distances = squared_distances(tile, real)
            num_inside += (distances <= real_radii).any(1).sum().item()
            covered |= (distances <= generated_radii[start : start + len(tile), None]).any(0)
            start += len(tile)
    return num_inside / len(generated), covered.double().mean().item()
