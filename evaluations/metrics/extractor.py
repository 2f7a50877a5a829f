"""What every feature extractor offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from torch import nn


class Extractor(nn.Module):
    """Features of images, in which sets of images are compared. It is built from an `AssetsConfig`.

    `forward(images_u8)` takes uint8 (B,3,H,W) and returns float32 features by name:
        pool (B,dim)             Frechet distance, precision, recall
        spatial (B,spatial_dim)  sFID, where `spatial_dim` is not None
        logits (B,num_classes)   Inception Score, where `num_classes` is not None

    `capabilities` may hold
        published      the network of the published numbers: its distances may be called rFID and gFID, references in
                       ADM's layout hold its features, and generations are given precision and recall
        float_images   has `features_of_floats(images)` for float images (B,3,H,W) in [-1,1], not rounded
        cmmd           its features, scaled to unit length, are those in which CMMD is defined

    A distance has a published name of its own (`published_distance`) only if the weights are the published ones
    (`has_published_weights`) and the reference is of the usual kind.
    """

    metric: ClassVar[str]  # family of its distances; see evaluations/metrics/registry.py
    dim: ClassVar[int]
    spatial_dim: ClassVar[int | None] = None
    num_classes: ClassVar[int | None] = None
    capabilities: ClassVar[frozenset[str]] = frozenset()
    file_statistics: ClassVar[tuple[str, str] | None] = None  # keys of mean and covariance in published files
    published_distance: ClassVar[str | None] = None  # where that is neither gFID nor rFID
    input_resize: ClassVar[str] = ""  # how images get the size of its input, for presets of protocols
    facts: ClassVar[Mapping[str, str]] = {}  # how images become features, for protocols

    stamp: str  # which weights it holds, for protocols
    has_published_weights: bool = False  # known by their hash, or fetched from their publisher

    @classmethod
    def without_network(cls) -> Self:
        """The extractor with all that it says of itself but its stamp, for checks: no weights are read."""
        extractor = cls.__new__(cls)
        nn.Module.__init__(extractor)
        return extractor
