"""What every feature extractor offers."""

from __future__ import annotations

from typing import ClassVar

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
    """

    metric: ClassVar[str]  # family of its distances; see evaluations/metrics/registry.py
    dim: ClassVar[int]
    spatial_dim: ClassVar[int | None] = None
    num_classes: ClassVar[int | None] = None
    capabilities: ClassVar[frozenset[str]] = frozenset()

    stamp: str  # which weights it holds, for protocols
