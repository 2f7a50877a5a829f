"""Perceptual losses: LPIPS, and for offline work a distance of EfficientNet-Lite0 features.

The second is never called LPIPS. `PERCEPTUAL` lists both by name; a builder (assets, dropout) returns (loss, stamp of
its weights) and says by `engine.assets.needs_assets` which files these are; a loss is a module

    loss(images, references) -> scalar, the mean over pairs      images, references (B,3,H,W) in [-1,1], not clamped

and computes in float32, whatever the autocast region around it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.assets import AssetsConfig, needs_assets
from engine.devices import full_precision
from tokenizer.frozen.base import Frozen
from tokenizer.frozen.lite0 import LITE0_ASSET, lite0_features
from tokenizer.frozen.lpips import LPIPS_BACKBONES, lpips_network

LITE0_LOSS_STRIDES = (2, 4, 8, 16)


class LPIPSLoss(nn.Module):
    """Mean LPIPS distance of image pairs.

    `dropout` puts the dropout layers of LPIPS in training mode, as GigaTok's released trainer does by accident.
    """

    def __init__(self, network: Frozen, dropout: bool = False) -> None:
        super().__init__()
        self.network = network
        if dropout:
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    nn.Module.train(module, True)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        with full_precision(images.device):
            return self.network(images.float(), references.float()).mean()


class Lite0Loss(nn.Module):
    """The form of LPIPS on EfficientNet-Lite0, without learned weights.

    It is not calibrated, and not comparable with LPIPS. Features have unit length over channels; their squared
    difference is summed over channels and averaged over pixels and pairs, then over the four strides.
    """

    def __init__(self, network: Frozen) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        with full_precision(images.device):
            maps = self.network(torch.cat([images.float(), references.float()]))
            total = images.new_zeros(())
            for features in maps:
                normed = features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
                image_features, reference_features = normed.chunk(2)
                total = total + (image_features - reference_features).square().sum(1).mean()
            return total / len(maps)


@needs_assets(LPIPS_BACKBONES["vgg"])
def _build_lpips(assets: AssetsConfig, dropout: bool) -> tuple[nn.Module, str]:
    network, stamp = lpips_network(assets)
    return LPIPSLoss(network, dropout), stamp


@needs_assets(LITE0_ASSET)
def _build_lite0(assets: AssetsConfig, dropout: bool) -> tuple[nn.Module, str]:
    network, stamp = lite0_features(assets, LITE0_LOSS_STRIDES)
    return Lite0Loss(network), stamp


PERCEPTUAL: dict[str, Callable[[AssetsConfig, bool], tuple[nn.Module, str]]] = {
    "lpips": _build_lpips,
    "efficientnet_lite0": _build_lite0,
}
