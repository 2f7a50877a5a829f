"""Semantic regularization (GigaTok, section 3.2): inner decoder features follow a frozen teacher's patch features.

    loss = -mean over images and cells of cos(head(features), teacher)      in [-1, 1]: a total loss can be negative

Shapes    images (B,3,H,W) in [-1,1]      teacher features (B,h*w,dim), row-major, on the tokenizer's own grid
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.devices import full_precision
from tokenizer.frozen.base import channels_last
from tokenizer.frozen.lite0 import LITE0_STRIDES, lite0_features
from tokenizer.frozen.normalization import CENTERED, CLIP, IMAGENET, Triple
from tokenizer.frozen.timm_vit import timm_vit


@dataclass(frozen=True)
class ViTKind:
    """A teacher of timm: its asset, the side of a patch in pixels, and the normalization it was trained with."""

    asset: str
    patch: int
    normalization: tuple[Triple, Triple]


def semantic_loss(features: Tensor, targets: Tensor) -> Tensor:
    """-mean cosine similarity over channels, in fp32."""
    with full_precision(features.device):
        return -F.cosine_similarity(features.float(), targets.float(), dim=-1).mean()


class Teacher(nn.Module):
    """Base class of all teachers: frozen networks whose features the tokenizer's inner features follow.

    A teacher is a class in a file of its own, entered in `TEACHERS` as a `TeacherKind` (or registered by a plug-in).
    """

    stamp: str  # which weights it holds

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1,1] -> features (B, grid * grid, dim) float32, row-major, without gradients."""
        raise NotImplementedError


class ViTTeacher(Teacher):
    """Final-norm patch tokens of a vision transformer, whose patches give the tokenizer's grid."""

    mean: Tensor
    std: Tensor

    def __init__(self, kind: ViTKind, grid: int, assets: AssetsConfig) -> None:
        super().__init__()
        self.size = grid * kind.patch
        self.network, self.stamp = timm_vit(kind.asset, self.size, assets)
        mean, std = kind.normalization
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Normalise, then bicubic resize without antialias or clamp, as released."""
        x = ((images.float() + 1) / 2 - self.mean) / self.std
        x = F.interpolate(x, size=(self.size, self.size), mode="bicubic", align_corners=False)
        network = self.network.network
        return network.forward_features(x)[:, network.num_prefix_tokens :].float()


class Lite0Teacher(Teacher):
    """The stride-16 map of EfficientNet-Lite0 on images enlarged to 16 pixels a grid cell; for offline work."""

    def __init__(self, grid: int, assets: AssetsConfig) -> None:
        super().__init__()
        self.size = grid * 16
        self.network, self.stamp = lite0_features(assets, (16,))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), size=(self.size, self.size), mode="bicubic", align_corners=False)
        return self.network(channels_last(x))[0].flatten(2).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class TeacherKind:
    """How to build a teacher, and the width of its features."""

    dim: int
    build: Callable[[Any, int, AssetsConfig], Teacher]  # (its section or None, cells per side of the grid, assets)
    config_class: type | None = None  # the dataclass of its section `semantic.<name>`, where it has options


def _timm_teacher(asset: str, dim: int, patch: int, normalization: tuple[Triple, Triple]) -> TeacherKind:
    kind = ViTKind(asset, patch, normalization)
    return TeacherKind(dim, lambda section, grid, assets: ViTTeacher(kind, grid, assets))


DINOV2_DIMS = {"s": 384, "b": 768, "l": 1024, "g": 1536}
TEACHERS: dict[str, TeacherKind] = {
    **{
        f"dinov2_{letter}{registers}": _timm_teacher(f"dinov2_{letter}{registers}", dim, 14, IMAGENET)
        for letter, dim in DINOV2_DIMS.items()
        for registers in ("", "_reg")
    },
    "clip_b": _timm_teacher("clip_b", 768, 16, CLIP),
    "siglip_so400m": _timm_teacher("siglip_so400m", 1152, 14, CENTERED),
    "efficientnet_lite0": TeacherKind(LITE0_STRIDES[16], lambda section, grid, assets: Lite0Teacher(grid, assets)),
}


def build_teacher(config: Any, grid: int, assets: AssetsConfig) -> Teacher:
    """The teacher that the section `semantic` names, for a grid of `grid` x `grid` cells."""
    return TEACHERS[config.teacher].build(getattr(config, config.teacher, None), grid, assets)
