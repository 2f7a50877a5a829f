"""What a set of images is measured against: statistics of reference images, and which ones they are.

A reference is images, whose statistics are computed once and kept beside the results (here), or an npz file in the
layout of ADM (`evaluations.protocols.reference_file`).

The kind of a reference is `train` (statistics of the training images: generation) or `val` (held-out images:
reconstruction). Taking one for the other is the most frequent mistake of published numbers, so it is an error
(`evaluations.protocols.trust`).
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.checkpoint.manifest import json_digest
from engine.messages import UserError, logger
from engine.world import World
from evaluations.image_sets import ImageSequence, with_bar
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.feature_statistics import FeatureStatistics, require_features
from evaluations.metrics.frechet import Gaussian
from evaluations.protocols.trust import FORCED
from evaluations.results import write_arrays

BATCH_SIZE = 50


@dataclass
class Reference:
    """Statistics of reference images; what is None is named in `missing` with the reason."""

    facts: dict[str, Any]  # for protocols: which images, their kind, how many, which extractor
    pool: Gaussian
    spatial: Gaussian | None = None
    features: Tensor | None = None  # pool features (n,D) float32 of the images, for numbers of single images
    missing: dict[str, str] = field(default_factory=dict)  # metric -> why this reference cannot give it
    no_features: str = "features of the reference images were not kept"  # why there are none, where there are none


class ReferenceSource(Protocol):
    """Where a reference comes from: opened and checked first, and computed only then, which may take long."""

    facts: dict[str, Any]  # see `Reference.facts`

    def reference(self, cache_dir: Path, world: World, keep_features: bool) -> Reference: ...


def extractor_facts(extractor: Extractor) -> dict[str, str]:
    """What a protocol says about the extractor of a reference."""
    return {"extractor": extractor.metric, "extractor_weights": extractor.stamp, **extractor.facts}


# ------------------------------------------------------------------------------------------------ images
def features_of(
    images: ImageSequence,
    extractor: Extractor,
    world: World,
    keep_features: bool,
    title: str,
    batch_size: int = BATCH_SIZE,
) -> FeatureStatistics:
    """Statistics of the features of all images; on this rank, of those of its batches."""
    statistics = FeatureStatistics(extractor, len(images), keep_features)
    for ids, pixels in with_bar(images.batches(batch_size, world), len(images), title, world):
        statistics.update(ids, extractor(pixels.to(world.device)))
    return statistics


class ReferenceImages:
    """A reference that is images. `facts` are known at once; `reference` computes the statistics."""

    def __init__(self, images: ImageSequence, kind: str, extractor: Extractor) -> None:
        self.images = images
        self.extractor = extractor
        self.facts: dict[str, Any] = {
            **images.facts,
            "kind": kind,
            "num_images": len(images),
            "image_size": images.image_size,
            **extractor_facts(extractor),
        }

    def reference(self, cache_dir: Path, world: World, keep_features: bool = False) -> Reference:
        """The statistics, from the cache where the same ones were computed before. A collective.

        `keep_features`: features of the images too, for numbers of single images.
        """
        # The name of the file is a hash of everything that the statistics depend on.
        images = {name: fact for name, fact in self.facts.items() if name != FORCED}
        content = {**images, "features": keep_features, "version": self.images.version}
        key = json_digest(content)[:16]
        path = cache_dir / f"reference_{key}.npz"

        if world.any(not path.is_file()):
            title = f"reference features ({self.facts['split']})"
            statistics = features_of(self.images, self.extractor, world, keep_features, title)
            _write_statistics(path, statistics, world)
        return _read_statistics(path, self.facts, keep_features)


def _write_statistics(path: Path, statistics: FeatureStatistics, world: World) -> None:
    """Merges the statistics of all ranks into one file. A collective: every rank calls it."""
    arrays: dict[str, np.ndarray] = {}
    arrays["pool_mean"], arrays["pool_cov"] = statistics.pool.merged(world).gaussian()
    if statistics.spatial is not None:
        arrays["spatial_mean"], arrays["spatial_cov"] = statistics.spatial.merged(world).gaussian()
    if statistics.features is not None:
        arrays["features"] = statistics.all_features(world).numpy()

    if world.is_main:
        write_arrays(path, **arrays)
        logger.info("reference statistics of %d images: %s", statistics.count, path)
    world.barrier()


def _read_statistics(path: Path, facts: dict[str, Any], keep_features: bool) -> Reference:
    """The reference in a file of the cache. Raises UserError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            pool = stored["pool_mean"], stored["pool_cov"]
            has_spatial = "spatial_mean" in stored.files
            spatial = (stored["spatial_mean"], stored["spatial_cov"]) if has_spatial else None
            features = None
            if keep_features:
                features = require_features(torch.from_numpy(stored["features"]), str(path))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"the kept statistics {path} are damaged ({error}); remove the file") from error
    return Reference(facts, pool, spatial, features)
