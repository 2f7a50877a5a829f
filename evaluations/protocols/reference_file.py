"""Reference statistics from an npz file in the layout of ADM.

    mu, sigma       pool features
    mu_s, sigma_s   spatial features
    arr_0           images, for precision and recall
    kind, num_images, image_size, extractor, extractor_weights, resize, positions
                    written by evaluations.make_reference only

A file with fewer keys makes some metrics unavailable, by name. Statistics are those of Inception, unless the file names
another extractor, or has them under keys of that extractor's own published files. Of a file with statistics of another
extractor only the images are used.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.checkpoint.manifest import file_sha256
from engine.messages import UserError, logger
from engine.world import World
from evaluations.image_sets import NpzImages
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import extractors_with
from evaluations.metrics.frechet import Gaussian
from evaluations.protocols.reference import Reference, ReferenceImages, extractor_facts

EXTRACTOR_FACTS = ("resize", "positions", "activation")  # of `Extractor.facts`, where the extractor has them

# ADM's files, with the size of their images: statistics of the whole training set.
TRAIN_STATISTICS = re.compile(r"VIRTUAL_imagenet(\d+)_labeled\.npz")


@dataclass
class ReferenceFile:
    """The content of a file, read and checked; `reference` computes features of its images."""

    path: Path
    extractor: Extractor
    facts: dict[str, Any]
    pool: Gaussian | None
    spatial: Gaussian | None
    images: NpzImages | None

    @classmethod
    def read(cls, path: Path, kind: str | None, extractor: Extractor) -> ReferenceFile:
        """Reads all but the images. `kind`: that of a file which does not say it itself.

        Raises UserError for a file that cannot be read, or that does not fit the extractor or the kind.
        """
        content = _fitting_content(path, kind, extractor, lambda: extractor.stamp)
        sha256 = file_sha256(path)
        images = NpzImages(path, sha256) if content.has_images else None
        facts: dict[str, Any] = {
            "file": path.name,
            "sha256": sha256,
            "kind": content.kind,
            **extractor_facts(extractor),
            **_count_facts(content, images, extractor),
        }
        return cls(path, extractor, facts, content.pool, content.spatial, images)

    @staticmethod
    def survey(path: Path, kind: str | None, extractor: Extractor, stamp: Callable[[], str | None]) -> dict[str, Any]:
        """The facts that decide whether the file fits, before the weights of the extractor are loaded; no hash is
        computed. `stamp` says which weights they are, None where that is not known; it is asked only of a file that
        says with which ones it was made.

        Raises UserError as `read` does.
        """
        content = _fitting_content(path, kind, extractor, stamp)
        images = NpzImages(path) if content.has_images else None
        return {"file": path.name, "kind": content.kind, **_count_facts(content, images, extractor)}

    def reference(self, cache_dir: Path, world: World, keep_features: bool) -> Reference:
        """The statistics of the file. What it lacks is computed from its images, or missing, with the reason.

        Statistics are taken from mu and sigma where the file has them (the published rule), else computed from its
        images. `keep_features`: features of its images, for numbers of single images.
        """
        reference = Reference(self.facts, self.pool, self.spatial)
        if self.images is not None and (keep_features or self.pool is None):
            images = ReferenceImages(self.images, self.facts["kind"], self.extractor)
            of_images = images.reference(cache_dir, world, keep_features=True)
            reference.features = of_images.features
            if self.pool is None:
                reference.pool = of_images.pool
                reference.spatial = of_images.spatial

        if reference.spatial is None and self.extractor.spatial_dim is not None:
            reference.missing["sfid"] = f"{self.path.name} has no mu_s, sigma_s"
        if self.images is None:
            reason = f"{self.path.name} has no images (arr_0)"
            reference.missing |= {"precision": reason, "recall": reason}
            reference.no_features = reason
        logger.info("reference: %s", ", ".join(f"{key} {value}" for key, value in reference.facts.items()))
        return reference


class _Content(NamedTuple):
    """What a file says, but for its images."""

    kind: str
    fits: bool  # whether its statistics are those of the extractor
    pool: Gaussian | None
    spatial: Gaussian | None
    has_images: bool
    num_images: int | str  # of the statistics; "unknown" where the file does not say it
    image_size: int | None
    extractor: str | None  # family of its features, and the stamp of the weights
    weights: str | None
    facts: dict[str, str]  # those of the extractor that the file states


def _fitting_content(path: Path, kind: str | None, extractor: Extractor, stamp: Callable[[], str | None]) -> _Content:
    """The content of a file that fits the extractor and the kind. Raises UserError for any other; see `read`."""
    if not path.is_file():
        raise UserError(f"reference {path} does not exist")
    content = _read_content(path, kind, extractor)
    _require_extractor(path, content, extractor, stamp)
    if content.pool is None and not content.has_images:
        if not content.fits:
            accepted = " or ".join(extractors_with("published"))
            raise UserError(f"reference {path} holds Inception statistics; use --extractor {accepted}")
        raise UserError(f"{path} has neither mu and sigma nor images (arr_0)")
    return content


def _count_facts(content: _Content, images: NpzImages | None, extractor: Extractor) -> dict[str, Any]:
    """How many images the statistics are of, and of which size, as far as the file shows it."""
    facts: dict[str, Any] = {"num_images": content.num_images, "statistics": "stored"}
    if content.image_size is not None:
        facts["image_size"] = content.image_size

    # Of statistics without a count, the covariance shows whether there were too few images.
    if content.pool is not None and content.num_images == "unknown":
        rank = int(np.linalg.matrix_rank(content.pool[1], hermitian=True))
        if rank < extractor.dim:
            facts["covariance_rank"] = rank

    # Its images.
    if images is not None:
        facts |= {"num_stored_images": len(images), "image_size": images.image_size}
    if content.pool is None:
        facts |= {"statistics": "of its images", "num_images": len(images)}
    return facts


def _read_content(path: Path, kind: str | None, extractor: Extractor) -> _Content:
    """Reads all but the images. Raises UserError for a file that cannot be read, or does not fit."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            _require_layout(path, stored.files)
            keys = _statistics_keys(stored.files, _text(stored, "extractor"), extractor)
            return _Content(
                kind=_kind(path, _text(stored, "kind"), kind),
                fits=keys is not None,
                pool=_gaussian(path, stored, *keys, extractor.dim) if keys is not None else None,
                spatial=_gaussian(path, stored, "mu_s", "sigma_s", extractor.spatial_dim if keys is not None else None),
                has_images="arr_0" in stored.files,
                num_images=int(stored["num_images"]) if "num_images" in stored.files else "unknown",
                image_size=int(stored["image_size"]) if "image_size" in stored.files else _size_in_name(path),
                extractor=_text(stored, "extractor"),
                weights=_text(stored, "extractor_weights"),
                facts={name: str(stored[name]) for name in EXTRACTOR_FACTS if name in stored.files},
            )
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        # UserError is a ValueError: those of the checks above have their message already.
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as reference statistics: {error}") from error


def _require_extractor(path: Path, content: _Content, extractor: Extractor, stamp: Callable[[], str | None]) -> None:
    """Raises UserError where the features of a file, as far as it says so, are those of another extractor."""
    # The extractor, by its name.
    if not content.fits:
        return
    if content.extractor not in (None, extractor.metric):
        raise UserError(
            f"reference {path} holds {content.extractor} features, the extractor gives {extractor.metric} features; "
            "statistics of two extractors cannot be compared"
        )

    # Its weights, and how it reads pictures.
    stated = stamp() if content.weights is not None else None
    if stated is not None and content.weights != stated:
        raise UserError(
            f"reference {path} was made with other weights of the extractor ({content.weights}), these are {stated}"
        )
    for name, fact in content.facts.items():
        if fact != extractor.facts.get(name):
            needed = extractor.facts.get(name, extractor.input_resize)
            raise UserError(f"reference {path} was made with another {name} ({fact}), the extractor's is {needed}")


def _statistics_keys(keys: list[str], stored_extractor: str | None, extractor: Extractor) -> tuple[str, str] | None:
    """The keys of mean and covariance of the extractor's features; None where a file has those of another one."""
    is_stated = stored_extractor == extractor.metric and set(extractor.facts) <= set(keys)
    if "published" in extractor.capabilities or is_stated:
        return "mu", "sigma"
    if extractor.file_statistics is not None and set(extractor.file_statistics) <= set(keys):
        return extractor.file_statistics
    return None


def _text(stored: np.lib.npyio.NpzFile, key: str) -> str | None:
    """An entry as text, or None where the file does not have it."""
    return str(stored[key]) if key in stored.files else None


def _require_layout(path: Path, keys: list[str]) -> None:
    """Raises UserError for the statistics that evaluations keep beside their results: those of any extractor."""
    if "pool_mean" in keys:
        raise UserError(
            f"reference {path} is not in ADM's layout: it holds statistics that an evaluation kept for itself, perhaps "
            "of another extractor; name the images instead, or make a file with evaluations.make_reference"
        )


def _size_in_name(path: Path) -> int | None:
    """The size of the images of ADM's files, which their name says."""
    known = TRAIN_STATISTICS.fullmatch(path.name)
    return int(known[1]) if known is not None else None


def _kind(path: Path, file_kind: str | None, flag_kind: str | None) -> str:
    """The kind of the reference: as the file says it or is known by its name, or as the flag says it.

    Raises UserError where they contradict each other, or nobody says it.
    """
    if file_kind is None and TRAIN_STATISTICS.fullmatch(path.name):
        file_kind = "train"
    if flag_kind is not None and file_kind not in (None, flag_kind):
        raise UserError(f"{path} is a reference of kind {file_kind}, not {flag_kind}")
    kind = flag_kind or file_kind
    if kind is None:
        raise UserError(
            f"{path} does not say whose statistics it holds: add --reference-kind train (statistics of the training "
            "images, for generation), val (held-out images, for reconstruction) or test (those of a benchmark)"
        )
    return kind


def _gaussian(
    path: Path, stored: np.lib.npyio.NpzFile, mean_key: str, cov_key: str, dim: int | None
) -> Gaussian | None:
    """The statistics under two keys, float64; None where file or extractor have no such features.

    Raises UserError for other shapes than (dim,) and (dim,dim), and for NaN or infinity.
    """
    if dim is None or mean_key not in stored.files or cov_key not in stored.files:
        return None
    mean = np.asarray(stored[mean_key], np.float64)
    cov = np.asarray(stored[cov_key], np.float64)
    if mean.shape != (dim,) or cov.shape != (dim, dim):
        raise UserError(
            f"{path}: {mean_key}, {cov_key} must be ({dim},) and ({dim},{dim}), found {mean.shape} {cov.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"{path}: {mean_key} or {cov_key} holds NaN or infinity")
    return mean, cov
