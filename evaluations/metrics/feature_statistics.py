"""What the metrics need of the features of a set of images, streamed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.world import World
from evaluations.metrics.frechet import Moments
from evaluations.metrics.inception_score import InceptionScore


@dataclass
class FeatureStatistics:
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
