"""Semantic regularization (GigaTok, section 3.2): inner decoder features follow a frozen teacher's patch features.

    loss = -mean over images and cells of cos(head(features), teacher)      in [-1, 1]: a total loss can be negative

Shapes    images (B,3,H,W) in [-1,1]      teacher features (B,h*w,dim), row-major, on the tokenizer's own grid
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.distributed import full_precision
from tokenizer.losses.backbones import LITE0_STRIDES, channels_last, lite0_features, timm_vit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def semantic_loss(features: Tensor, targets: Tensor) -> Tensor:
    """-mean cosine similarity over channels, in fp32."""
    with full_precision(features.device):
        return -F.cosine_similarity(features.float(), targets.float(), dim=-1).mean()


class DINOv2Teacher(nn.Module):
    """Final-norm patch tokens of DINOv2, whose 14-pixel patches give the tokenizer's grid."""

    mean: Tensor
    std: Tensor

    def __init__(self, asset: str, model_name: str, grid: int, assets: AssetsConfig) -> None:
        super().__init__()
        self.size = grid * 14
        self.network, self.stamp = timm_vit(asset, model_name, self.size, assets)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Normalise, then bicubic resize without antialias or clamp, as released."""
        x = ((images.float() + 1) / 2 - self.mean) / self.std
        x = F.interpolate(x, size=(self.size, self.size), mode="bicubic", align_corners=False)
        network = self.network.network
        return network.forward_features(x)[:, network.num_prefix_tokens :].float()


class Lite0Teacher(nn.Module):
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
    """How to build a teacher for a grid, and the width of its features."""

    dim: int
    build: Callable[[int, AssetsConfig], nn.Module]


def _dinov2(asset: str, dim: int, model_name: str) -> TeacherKind:
    return TeacherKind(dim, lambda grid, assets: DINOv2Teacher(asset, model_name, grid, assets))


TEACHERS = {
    "dinov2_b": _dinov2("dinov2_b", 768, "vit_base_patch14_dinov2.lvd142m"),
    "efficientnet_lite0": TeacherKind(LITE0_STRIDES[16], Lite0Teacher),
}
