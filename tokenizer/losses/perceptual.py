"""Perceptual losses: LPIPS, and for offline work a distance of EfficientNet-Lite0 features.

The second is never called LPIPS. `PERCEPTUAL` lists both by name; a builder (assets, dropout) returns (loss, stamp of
its weights) and says by `engine.assets.needs_assets` which files these are; a loss is a module

    loss(images, references) -> scalar, the mean over pairs      images, references (B,3,H,W) in [-1,1], not clamped

and computes in float32, whatever the autocast region around it. Where it derives from `PerceptualLoss`, it may say what
it computes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.assets import AssetsConfig, needs_assets
from engine.devices import full_precision
from engine.flops import FORWARD, THROUGH, same_chain_flops
from tokenizer.frozen.base import Frozen
from tokenizer.frozen.lite0 import LITE0_ASSET, lite0_features, lite0_flops
from tokenizer.frozen.lpips import LPIPS_BACKBONES, lpips_network

LITE0_LOSS_STRIDES = (2, 4, 8, 16)


class PerceptualLoss(nn.Module):
    """A perceptual loss that counts its operations."""

    def training_flops(self, image_size: int) -> int | None:
        """Operations for one pair, with the gradient of the first image (see `engine.flops`); None = not counted."""
        return None


class LPIPSLoss(PerceptualLoss):
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

    def training_flops(self, image_size: int) -> int:
        return (THROUGH + FORWARD) * same_chain_flops(self.network.network.net.modules(), image_size)


class Lite0Loss(PerceptualLoss):
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

    def training_flops(self, image_size: int) -> int:
        # Both images of a pair are one batch, so that gradients pass through both.
        forward, backward = lite0_flops(self.network, image_size)
        return 2 * (forward + backward)


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
