"""Statistics of the features of a set of images, streamed: all that the metrics need of the set."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.finite import numbered
from engine.messages import UserError
from engine.world import World
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.frechet import Moments
from evaluations.metrics.inception_score import InceptionScore

CHECKED_ROWS = 4096  # rows checked at a time


@dataclass
class FeatureStatistics:
    """Statistics of `count` images, which may come in any order and over any number of ranks.

    `keep_features` stores the features as well, float32 in the order of the image numbers: pool (count,dim), for
    numbers of single images and for errors, and spatial (count,spatial_dim), for the error of sFID.
    """

    extractor: Extractor
    count: int
    keep_features: bool = False
    pool: Moments = field(init=False)
    spatial: Moments | None = field(init=False, default=None)  # where the extractor has spatial features
    score: InceptionScore | None = field(init=False, default=None)  # where the extractor has logits
    features: Tensor | None = field(init=False, default=None)
    spatial_features: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.pool = Moments(self.extractor.dim)
        if self.extractor.spatial_dim is not None:
            self.spatial = Moments(self.extractor.spatial_dim)
        if self.extractor.num_classes is not None:
            self.score = InceptionScore(self.count, self.extractor.num_classes)
        if self.keep_features:
            self.features = torch.zeros(self.count, self.extractor.dim)
            if self.extractor.spatial_dim is not None:
                self.spatial_features = torch.zeros(self.count, self.extractor.spatial_dim)

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
        if self.spatial_features is not None:
            self.spatial_features[ids] = features["spatial"].float().cpu()

    def all_features(self, world: World) -> Tensor:
        """Pool features of all ranks (count,dim), in the order of the image numbers. A collective."""
        return _of_all_ranks(self.features, world)

    def all_spatial_features(self, world: World) -> Tensor:
        """Spatial features of all ranks (count,spatial_dim), in the order of the image numbers. A collective."""
        return _of_all_ranks(self.spatial_features, world)


def _of_all_ranks(table: Tensor, world: World) -> Tensor:
    """The sum of the tables of all ranks, each of which has zeros in the rows of the others: exactly their rows."""
    return table if world.size == 1 else world.sum(table.to(world.device)).cpu()


def require_features(features: Tensor, source: str) -> Tensor:
    """Stored features (n,D), checked: of another type they are rounded, and numbers of them are others.

    Raises UserError unless they are a finite float32 table.
    """
    if features.dtype != torch.float32 or features.ndim != 2:
        raise UserError(
            f"{source}: features must be float32 (images, D), found {features.dtype} {tuple(features.shape)}"
        )
    if not all(chunk.isfinite().all() for chunk in features.split(CHECKED_ROWS)):
        raise UserError(f"{source}: the features hold NaN or infinity")
    return features
