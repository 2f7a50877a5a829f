"""What a set of images is measured against: statistics of reference images, with a stamp that says which ones.

An npz file in the layout of ADM (mu, sigma: pool features; mu_s, sigma_s: spatial features; arr_0: images for precision
and recall), or images, whose statistics are computed once and kept beside the results. A file with fewer keys makes
some metrics unavailable, by name.

The kind of a reference is `train` (statistics of the training images: generation) or `val` (held-out images:
reconstruction). Taking one for the other is the most frequent mistake of published numbers, so it is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.checkpoint.manifest import file_sha256
from engine.messages import UserError, logger
from engine.world import World
from evaluations.image_sets import ImageSequence, NpzImages, with_bar
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.metrics.frechet import Gaussian, frechet_distance
from evaluations.metrics.precision_recall import NEIGHBOR, precision_recall
from evaluations.results import write_arrays

BATCH = 50


PUBLISHED = {"generation": "gfid", "reconstruction": "rfid"}


OTHERWISE = {"generation": "generated", "reconstruction": "reconstruction"}  # suffix of a number of another kind


KINDS = {"generation": "train", "reconstruction": "val"}  # what is measured -> the kind of its reference


TRAIN_STATISTICS = re.compile(r"VIRTUAL_imagenet\d+_labeled\.npz")  # ADM's files: statistics of the whole training set


@dataclass
class Reference:
    """Statistics of reference images; what is None is named in `missing` with the reason."""

    facts: dict[str, Any]
    pool: Gaussian | None = None
    spatial: Gaussian | None = None
    features: Tensor | None = None  # pool features of images (n,D), for precision and recall
    missing: dict[str, str] = field(default_factory=dict)


def features_of(
    images: ImageSequence, extractor: nn.Module, world: World, keep: bool, title: str, batch_size: int = BATCH
) -> FeatureStatistics:
    """The features of all images, on this rank those of its batches."""
    found = FeatureStatistics(extractor, len(images), keep)
    for ids, pixels in with_bar(images.batches(batch_size, world), len(images), title, world):
        found.update(ids, extractor(pixels.to(world.device)))
    return found


def reference_of_images(
    images: ImageSequence, kind: str, extractor: nn.Module, cache_dir: Path, world: World, keep: bool = False
) -> Reference:
    """The statistics of `images`, from the cache where the same ones were computed before. `keep`: their features too,
    for precision and recall.
    """
    facts = {**images.facts, "kind": kind, "num_images": len(images), "image_size": images.image_size}
    facts |= {"extractor": extractor.metric, "extractor_weights": extractor.stamp}
    key = hashlib.sha256(
        json.dumps({**facts, "features": keep, "version": images.version}, sort_keys=True).encode()
    ).hexdigest()[:16]
    path = cache_dir / f"reference_{key}.npz"
    if world.any(not path.is_file()):
        found = features_of(images, extractor, world, keep, f"reference features ({facts['split']})")
        gaussians = {"pool": found.pool.merged(world).gaussian()}
        if found.spatial is not None:
            gaussians["spatial"] = found.spatial.merged(world).gaussian()
        kept = {"features": found.all_features(world).numpy()} if keep else {}
        if world.is_main:
            arrays = {f"{name}_{part}": g[i] for name, g in gaussians.items() for i, part in enumerate(("mean", "cov"))}
            write_arrays(path, **arrays, **kept)
            logger.info("reference statistics of %d images: %s", len(images), path)
        world.barrier()
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = [n for n in ("pool", "spatial") if f"{n}_mean" in stored]
            gaussians = {n: (stored[f"{n}_mean"], stored[f"{n}_cov"]) for n in names}
            features = torch.from_numpy(stored["features"]) if keep else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"the kept statistics {path} are damaged ({error}); remove the file") from error
    return Reference(facts, gaussians["pool"], gaussians.get("spatial"), features)


def _kind_of(path: Path, stored: np.lib.npyio.NpzFile, given: str | None) -> str:
    own = str(stored["kind"]) if "kind" in stored.files else None
    if own is None and TRAIN_STATISTICS.fullmatch(path.name):
        own = "train"
    if given is not None and own not in (None, given):
        raise UserError(f"{path} is a reference of kind {own}, not {given}")
    kind = given or own
    if kind is None:
        raise UserError(
            f"{path} does not say whose statistics it holds: add --reference-kind train (statistics of the training "
            "images, for generation) or val (held-out images, for reconstruction)"
        )
    return kind


def reference_of_file(
    path: Path, kind: str | None, extractor: nn.Module, cache_dir: Path, world: World, keep: bool = True
) -> Reference:
    """The reference in an npz file; see the module docstring. Statistics are taken from mu and sigma where the file
    has them (the published rule), else computed from its images.
    """
    if not path.is_file():
        raise UserError(f"reference {path} does not exist")
    if extractor.metric != "fid":
        raise UserError(f"reference {path} holds Inception statistics; use --extractor inception")
    try:
        with np.load(path, allow_pickle=False) as stored:
            kind = _kind_of(path, stored, kind)
            pool = _gaussian(path, stored, "mu", "sigma", extractor.dim)
            spatial = _gaussian(path, stored, "mu_s", "sigma_s", extractor.spatial_dim)
            has_images = "arr_0" in stored.files
            behind = int(stored["num_images"]) if "num_images" in stored.files else "unknown"
            weights = str(stored["extractor_weights"]) if "extractor_weights" in stored.files else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as reference statistics: {error}") from error
    if weights not in (None, extractor.stamp):
        raise UserError(f"{path} was made with the Inception weights {weights}, these are {extractor.stamp}")
    facts: dict[str, Any] = {"file": path.name, "sha256": file_sha256(path), "kind": kind}
    facts |= {"extractor": extractor.metric, "extractor_weights": extractor.stamp}
    facts |= {"num_images": behind, "statistics": "stored"}  # of mu and sigma
    reference = Reference(facts, pool, spatial)
    if has_images:
        images = NpzImages(path, facts["sha256"])
        facts |= {"num_stored_images": len(images), "image_size": images.image_size}
        if keep or pool is None:
            of_images = reference_of_images(images, kind, extractor, cache_dir, world, keep=True)
            reference.features = of_images.features
        if pool is None:
            facts |= {"statistics": "of its images", "num_images": len(images)}
            reference.pool, reference.spatial = of_images.pool, of_images.spatial
    reason = f"{path.name} has no {{}}"
    if reference.pool is None:
        raise UserError(f"{path} has neither mu and sigma nor images (arr_0)")
    if reference.spatial is None:
        reference.missing["sfid"] = reason.format("mu_s, sigma_s")
    if not has_images:
        reference.missing |= dict.fromkeys(("precision", "recall"), reason.format("images (arr_0)"))
    logger.info("reference: %s", ", ".join(f"{k} {v}" for k, v in reference.facts.items()))
    return reference


def _gaussian(path: Path, stored: Any, mean_key: str, cov_key: str, dim: int) -> Gaussian | None:
    if mean_key not in stored.files or cov_key not in stored.files:
        return None
    mean, cov = np.asarray(stored[mean_key], np.float64), np.asarray(stored[cov_key], np.float64)
    if mean.shape != (dim,) or cov.shape != (dim, dim):
        raise UserError(
            f"{path}: {mean_key}, {cov_key} must be ({dim},) and ({dim},{dim}), found {mean.shape} {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"{path}: {mean_key} or {cov_key} holds NaN or infinity")
    return mean, cov


def require_kind(reference: Reference, measured: str, forced: bool) -> None:
    """An error, or where it is `forced` a warning, unless the reference is of the kind that `measured` (generation |
    reconstruction) is published with.
    """
    wanted, found = KINDS[measured], reference.facts["kind"]
    if found == wanted:
        return
    if not forced:
        raise UserError(
            f"a {measured} is measured against a reference of kind {wanted}, this one is {found} "
            f"({reference.facts.get('file') or reference.facts.get('data')}); to do it all the same: --force-reference"
        )
    logger.warning("%s measured against a reference of kind %s: not a published protocol", measured, found)


def require_size(reference: Reference, image_size: int) -> None:
    """An error where the reference images have another resolution."""
    found = reference.facts.get("image_size")
    if found not in (None, image_size):
        raise UserError(f"the reference has images of {found} px, the images to measure have {image_size} px")


def distance(found: FeatureStatistics, reference: Reference, world: World) -> float:
    """Frechet distance of pool features."""
    return frechet_distance(found.pool.merged(world).gaussian(), reference.pool)


def compute_metrics(
    made: FeatureStatistics, reference: Reference, world: World, measured: str, half: bool = False
) -> tuple[dict[str, float], dict[str, str]]:
    """(metrics, {metric: why it is unavailable}) of images that are a `generation` or a `reconstruction`.

    The distance is called rfid or gfid only where network and kind of reference are those of the published number.
    `half` adds precision and recall in emulated float16.
    """
    network = made.extractor.metric
    published = network == "fid" and reference.facts["kind"] == KINDS[measured]
    metrics = {
        PUBLISHED[measured] if published else f"{network}_{OTHERWISE[measured]}": distance(made, reference, world)
    }
    wanted = made.features is not None
    missing = {name: why for name, why in reference.missing.items() if wanted or name not in ("precision", "recall")}
    if made.spatial is not None:
        if reference.spatial is not None:
            metrics["sfid"] = frechet_distance(made.spatial.merged(world).gaussian(), reference.spatial)
        metrics["inception_score"] = made.score.value(world)
    if made.features is not None and reference.features is not None:
        features = made.all_features(world)
        if min(len(features), len(reference.features)) <= NEIGHBOR:
            missing |= dict.fromkeys(("precision", "recall"), f"they need more than {NEIGHBOR} images in each set")
            return metrics, missing
        pair = reference.features.to(world.device), features.to(world.device)
        if half:
            metrics["precision_fp16"], metrics["recall_fp16"] = precision_recall(*pair, half=True)
        metrics["precision"], metrics["recall"] = precision_recall(*pair)
    return metrics, missing
