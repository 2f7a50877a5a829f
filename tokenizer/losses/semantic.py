"""Semantic regularization (GigaTok, arXiv:2504.08736, section 3.2).

Features of an inner decoder block follow the patch features of a frozen pretrained network, the teacher:

    loss = -mean over images and cells of cos(head(features), teacher features)

It lies in [-1,1], so a total loss can be negative.

Shapes    images (B,3,H,W) in [-1,1]      features of head and teacher (B,h*w,dim), row-major, on the tokenizer's grid
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.devices import full_precision
from engine.flops import PartFlops
from tokenizer.frozen.base import channels_last
from tokenizer.frozen.lite0 import LITE0_ASSET, LITE0_STRIDES, lite0_features, lite0_flops
from tokenizer.frozen.normalization import CENTERED, CLIP, IMAGENET, Normalization
from tokenizer.frozen.timm_vit import timm_vit, vit_flops


@dataclass(frozen=True)
class ViTKind:
    """A vision transformer that can be a teacher."""

    asset: str  # name of its weights in `engine.assets`
    patch: int  # pixels, side of a patch
    normalization: Normalization  # of images, with which it was trained


def semantic_loss(features: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Minus the mean cosine similarity of features (B,N,dim) and targets (B,N,dim), in float32.

    `weights` (B,) multiply the similarity of each image.
    """
    with full_precision(features.device):
        similarity = F.cosine_similarity(features.float(), targets.float(), dim=-1)
        return -(similarity if weights is None else similarity * weights[:, None]).mean()


class Teacher(nn.Module):
    """Base class of all teachers: frozen networks whose features the tokenizer's inner features follow.

    Those below come with the project; another one is a class in a file of its own, or in a plug-in. `TEACHERS` lists
    all of them as `TeacherKind`s: one class can be several teachers. A teacher is built for one grid of `grid` x `grid`
    cells and takes images of any size.
    """

    stamp: str  # which weights it holds; see `tokenizer.frozen.base`

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1,1] -> features (B, grid * grid, dim) float32, row-major, without gradients."""
        raise NotImplementedError

    def training_flops(self) -> PartFlops | None:
        """What `forward` computes for one image (see `engine.flops`); None where it is not counted."""
        return None


class ViTTeacher(Teacher):
    """Patch tokens of a vision transformer after its last norm, one per cell of the tokenizer's grid.

    Images are resized so that each cell becomes one patch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: ViTKind, grid: int, assets: AssetsConfig) -> None:
        super().__init__()
        self.size = grid * kind.patch  # pixels, side of the images that the network sees
        self.network, self.stamp = timm_vit(kind.asset, self.size, assets)
        mean, std = kind.normalization
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        # Normalize, then resize without antialias or clamp, as released.
        x = ((images.float() + 1) / 2 - self.mean) / self.std
        x = F.interpolate(x, size=(self.size, self.size), mode="bicubic", align_corners=False)

        # Class and register tokens come first; they belong to no cell.
        network = self.network.network
        tokens = network.forward_features(x)
        return tokens[:, network.num_prefix_tokens :].float()

    def training_flops(self) -> PartFlops:
        return PartFlops("teacher", "matrix", vit_flops(self.network))


class Lite0Teacher(Teacher):
    """A map of EfficientNet-Lite0. It works offline.

    Images are resized so that each cell of the tokenizer's grid becomes one pixel of the map.
    """

    STRIDE: ClassVar[int] = 16  # image pixels per pixel of the map

    def __init__(self, grid: int, assets: AssetsConfig) -> None:
        super().__init__()
        self.size = grid * self.STRIDE
        self.network, self.stamp = lite0_features(assets, (self.STRIDE,))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), size=(self.size, self.size), mode="bicubic", align_corners=False)
        (feature_map,) = self.network(channels_last(x))
        return feature_map.flatten(2).transpose(1, 2).contiguous()

    def training_flops(self) -> PartFlops:
        forward, _ = lite0_flops(self.network, self.size)
        return PartFlops("teacher", "convolution", forward)


@dataclass(frozen=True)
class TeacherKind:
    """How to build a teacher, and the width of its features."""

    dim: int  # channels of its features
    build: Callable[[Any, int, AssetsConfig], Teacher]  # (its section or None, cells per side of the grid, assets)
    config_class: type | None = None  # the dataclass of its section `semantic.<name>`, where it has options
    assets: tuple[str, ...] = ()  # pretrained weights that it needs, by their names in `engine.assets`


def _vit_teacher(asset: str, dim: int, patch: int, normalization: Normalization) -> TeacherKind:
    kind = ViTKind(asset, patch, normalization)
    return TeacherKind(dim, lambda section, grid, assets: ViTTeacher(kind, grid, assets), assets=(asset,))


# Names with `_reg`: DINOv2 with register tokens.
#
# Which CLIP GigaTok's table 6 calls "CLIP-B" is not certain. Its released code has no teacher of that name; the one
# CLIP that it names, `clip_dfn-vit-l/14` of the package open_clip, is another network of another size. So `clip_b`
# stays what runs here have used: OpenAI's weights under timm's plain name, which computes the exact GELU. OpenAI
# trained them with quickgelu: `clip_b_quickgelu` is the same file with that activation.
TEACHERS: dict[str, TeacherKind] = {
    "dinov2_s": _vit_teacher("dinov2_s", 384, 14, IMAGENET),
    "dinov2_s_reg": _vit_teacher("dinov2_s_reg", 384, 14, IMAGENET),
    "dinov2_b": _vit_teacher("dinov2_b", 768, 14, IMAGENET),
    "dinov2_b_reg": _vit_teacher("dinov2_b_reg", 768, 14, IMAGENET),
    "dinov2_l": _vit_teacher("dinov2_l", 1024, 14, IMAGENET),
    "dinov2_l_reg": _vit_teacher("dinov2_l_reg", 1024, 14, IMAGENET),
    "dinov2_g": _vit_teacher("dinov2_g", 1536, 14, IMAGENET),
    "dinov2_g_reg": _vit_teacher("dinov2_g_reg", 1536, 14, IMAGENET),
    "clip_b": _vit_teacher("clip_b", 768, 16, CLIP),
    "clip_b_quickgelu": _vit_teacher("clip_b_quickgelu", 768, 16, CLIP),
    "siglip_so400m": _vit_teacher("siglip_so400m", 1152, 14, CENTERED),
    "efficientnet_lite0": TeacherKind(
        LITE0_STRIDES[Lite0Teacher.STRIDE],
        lambda section, grid, assets: Lite0Teacher(grid, assets),
        assets=(LITE0_ASSET,),
    ),
}


def build_teacher(config: Any, grid: int, assets: AssetsConfig) -> Teacher:
    """The teacher that the section `semantic` names, for a grid of `grid` x `grid` cells."""
    section = getattr(config, config.teacher, None)
    return TEACHERS[config.teacher].build(section, grid, assets)
