"""The metrics of the ADM suite (Dhariwal and Nichol, arXiv:2105.05233) over the features of a set of images, streamed.

    fid, sfid          Frechet distance of pool and of spatial features (statistics.py)
    inception_score    exp of the mean KL between p(y|x) and p(y), averaged over consecutive chunks of 5,000 images
    precision, recall  share of samples inside the manifold of the reference, and the reverse (arXiv:1904.06991), where
                       a manifold is the union of balls up to the 3rd nearest neighbour of each image

Everything is in float64 except the distances of precision and recall (float32; `half` emulates TensorFlow's float16).
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.devices import full_precision

NEIGHBOR = 3  # a ball reaches to this nearest neighbour, not counting the image itself


TILE_ELEMENTS = 2**24  # distances held at a time


def squared_distances(a: Tensor, b: Tensor, half: bool = False) -> Tensor:
    """(n,D), (m,D) -> (n,m), not negative. `half`: every intermediate result rounded to float16, as TensorFlow does."""
    if not half:
        product = (a @ b.T).mul_(-2).add_(a.square().sum(1, keepdim=True))  # in place: one table at a time
        return product.add_(b.square().sum(1)).clamp_min_(0)
    a16, b16 = a.half().float(), b.half().float()
    norm_a, norm_b = ((x.square().half().float().sum(1)).half() for x in (a16, b16))
    return ((norm_a[:, None] - 2 * (a16 @ b16.T).half()) + norm_b).clamp_min(0).float()


def _tiles(rows: Tensor, others: int) -> list[Tensor]:
    return list(rows.split(max(1, TILE_ELEMENTS // others)))


def radii(features: Tensor, half: bool = False) -> Tensor:
    """Squared distance of each row (n,D) to its `NEIGHBOR`-th nearest other row, (n,)."""
    nearest = NEIGHBOR + 1  # the row itself is among them
    found = [
        squared_distances(tile, features, half).topk(nearest, largest=False).values[:, -1]
        for tile in _tiles(features, len(features))
    ]
    return torch.cat(found)


def precision_recall(reference: Tensor, samples: Tensor, half: bool = False) -> tuple[float, float]:
    """(precision, recall) of samples (n,D) against reference features (m,D); each set has 4 images or more.

    Without `half`, `samples` are moved in place by the mean of the reference: 50,000 of them are 0.4 GB.
    """
    if min(len(reference), len(samples)) <= NEIGHBOR:
        raise ValueError(f"precision and recall need more than {NEIGHBOR} images in each set")
    with full_precision(reference.device):
        reference, samples = reference.float(), samples.float()
        if not half:  # distances stay, rounding shrinks; float16 is emulated as it is
            centre = reference.mean(0)
            reference, samples = reference - centre, samples.sub_(centre)
        of_reference, of_samples = radii(reference, half), radii(samples, half)
        inside, covered, start = 0, torch.zeros(len(reference), dtype=torch.bool, device=reference.device), 0
        for tile in _tiles(samples, len(reference)):
            distances = squared_distances(tile, reference, half)
            inside += (distances <= of_reference).any(1).sum().item()
            covered |= (distances <= of_samples[start : start + len(tile), None]).any(0)
            start += len(tile)
    return inside / len(samples), covered.double().mean().item()
