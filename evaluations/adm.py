"""The metrics of the ADM suite (Dhariwal and Nichol, arXiv:2105.05233) over the features of a set of images, streamed.

    fid, sfid          Frechet distance of pool and of spatial features (statistics.py)
    inception_score    exp of the mean KL between p(y|x) and p(y), averaged over consecutive chunks of 5,000 images
    precision, recall  share of samples inside the manifold of the reference, and the reverse (arXiv:1904.06991), where
                       a manifold is the union of balls up to the 3rd nearest neighbour of each image

Everything is in float64 except the distances of precision and recall (float32; `half` emulates TensorFlow's float16).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.distributed import World, full_precision
from evaluations.statistics import Moments

SCORE_CHUNK = 5000  # consecutive images of one Inception Score
NEIGHBOUR = 3  # a ball reaches to this nearest neighbour, not counting the image itself
TILE_ELEMENTS = 2**24  # distances held at a time


class InceptionScore:
    """Class probabilities summed over chunks of consecutive image numbers. `count` images in all."""

    def __init__(self, count: int, num_classes: int) -> None:
        chunks = -(-count // SCORE_CHUNK)
        self.sums = torch.zeros(chunks, num_classes, dtype=torch.float64)
        self.negative_entropies = torch.zeros(chunks, dtype=torch.float64)
        self.counts = torch.zeros(chunks, dtype=torch.float64)

    def update(self, ids: Tensor, logits: Tensor) -> None:
        """Image numbers (B,) and their logits (B,num_classes)."""
        log_p = logits.double().cpu().log_softmax(1)
        p, chunks = log_p.exp(), ids // SCORE_CHUNK
        self.sums.index_add_(0, chunks, p)
        self.negative_entropies.index_add_(0, chunks, (p * log_p).sum(1))
        self.counts.index_add_(0, chunks, torch.ones(len(ids), dtype=torch.float64))

    def value(self, world: World) -> float:
        parts = (self.sums, self.negative_entropies, self.counts)
        sums, inner, counts = (world.sum(part.to(world.device)).cpu() for part in parts)
        mean = sums / counts[:, None]
        divergence = inner / counts - torch.special.xlogy(mean, mean).sum(1)
        return divergence.exp().mean().item()


@dataclass
class ImageSet:
    """What the metrics need of `count` images, streamed in any order and over any number of ranks.

    `keep` stores the pool features as well, (count,dim) float32, for precision and recall.
    """

    extractor: nn.Module
    count: int
    keep: bool = False
    pool: Moments = field(init=False)
    spatial: Moments | None = field(init=False, default=None)
    score: InceptionScore | None = field(init=False, default=None)
    features: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        dim = self.extractor.dim
        self.pool = Moments(dim)
        if hasattr(self.extractor, "spatial_dim"):
            self.spatial = Moments(self.extractor.spatial_dim)
            self.score = InceptionScore(self.count, self.extractor.num_classes)
        if self.keep:
            self.features = torch.zeros(self.count, dim)

    def update(self, ids: Tensor, found: dict[str, Tensor]) -> None:
        """Features of the images number `ids` (B,)."""
        self.pool.update(found["pool"])
        if self.spatial is not None:
            self.spatial.update(found["spatial"])
            self.score.update(ids, found["logits"])
        if self.features is not None:
            self.features[ids] = found["pool"].float().cpu()

    def all_features(self, world: World) -> Tensor:
        """Pool features of all ranks, in the order of the image numbers."""
        return self.features if world.size == 1 else world.sum(self.features.to(world.device)).cpu()


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
    """Squared distance of each row (n,D) to its `NEIGHBOUR`-th nearest other row, (n,)."""
    nearest = NEIGHBOUR + 1  # the row itself is among them
    found = [
        squared_distances(tile, features, half).topk(nearest, largest=False).values[:, -1]
        for tile in _tiles(features, len(features))
    ]
    return torch.cat(found)


def precision_recall(reference: Tensor, samples: Tensor, half: bool = False) -> tuple[float, float]:
    """(precision, recall) of samples (n,D) against reference features (m,D); each set has 4 images or more.

    Without `half`, `samples` are moved in place by the mean of the reference: 50,000 of them are 0.4 GB.
    """
    if min(len(reference), len(samples)) <= NEIGHBOUR:
        raise ValueError(f"precision and recall need more than {NEIGHBOUR} images in each set")
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
