"""Feature statistics of reference images, computed once and kept beside the results."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from engine.config import logger
from engine.datasets import DataConfig, ImageSource, centre_batch
from engine.distributed import World
from evaluations.statistics import Moments

BATCH = 50


def describe_reference(source: ImageSource, split: str, image_size: int, extractor: nn.Module) -> dict[str, Any]:
    """The facts that define reference statistics: which images, how cropped, by which network."""
    return {
        "data": source.name,
        "split": split,
        "num_images": len(source),
        "content": source.identity(),
        "image_size": image_size,
        "crop": "centre",
        "extractor": extractor.metric,
        "extractor_weights": extractor.stamp,
    }


def reference_moments(
    source: ImageSource, split: str, data: DataConfig, extractor: nn.Module, cache_dir: Path, world: World
) -> tuple[Moments, dict[str, Any]]:
    """Moments of all images of `source`, from the cache where the same ones were computed before; and their
    description.
    """
    facts = describe_reference(source, split, data.image_size, extractor)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir / f"reference_{key}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            moments = Moments(extractor.dim, int(stored["count"]), torch.from_numpy(stored["centre"]))
            moments.total, moments.outer = torch.from_numpy(stored["total"]), torch.from_numpy(stored["outer"])
        return moments, facts
    moments = Moments(extractor.dim)
    starts = range(0, len(source), BATCH)[world.rank :: world.size]
    for start in tqdm(starts, desc=f"reference features ({split})", disable=None if world.is_main else True):
        rows = range(start, min(start + BATCH, len(source)))
        moments.update(extractor(centre_batch(source, data.image_size, rows, data.skip_broken).to(world.device)))
    moments = moments.merged(world)
    if world.is_main:
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, count=moments.count, centre=moments.centre, total=moments.total, outer=moments.outer)
        temporary.replace(path)
        logger.info("reference statistics of %d images: %s", moments.count, path)
    world.barrier()
    return moments, facts
