"""Statistics of the features of a set of images, streamed: all that the metrics need of the set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.finite import numbered
from engine.world import World
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.frechet import Moments
from evaluations.metrics.inception_score import InceptionScore


@dataclass
class FeatureStatistics:
    """Statistics of `count` images, which may come in any order and over any number of ranks.

    `keep_features` stores the pool features as well, (count,dim) float32, for precision and recall.
    """

    extractor: Extractor
    count: int
    keep_features: bool = False
    pool: Moments = field(init=False)
    spatial: Moments | None = field(init=False, default=None)  # where the extractor has spatial features
    score: InceptionScore | None = field(init=False, default=None)  # where the extractor has logits
    features: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.pool = Moments(self.extractor.dim)
        if self.extractor.spatial_dim is not None:
            self.spatial = Moments(self.extractor.spatial_dim)
        if self.extractor.num_classes is not None:
            self.score = InceptionScore(self.count, self.extractor.num_classes)
        if self.keep_features:
            self.features = torch.zeros(self.count, self.extractor.dim)

    def update(self, ids: Tensor, features: dict[str, Tensor]) -> None:
        """Adds what the extractor returned for the images number `ids` (B,).

        Raises NonFiniteValuesError where features are not finite.
        """
        with numbered("image", ids):
            self.pool.update(features["pool"])
            if self.spatial is not None:
                self.spatial.update(features["spatial"])
            if self.score is not None:
                self.score.update(ids, features["logits"])
        if self.features is not None:
            self.features[ids] = features["pool"].float().cpu()

    def all_features(self, world: World) -> Tensor:
        """Pool features of all ranks (count,dim), in the order of the image numbers. A collective."""
        return self.features if world.size == 1 else world.sum(self.features.to(world.device)).cpu()
