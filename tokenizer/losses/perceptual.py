"""Perceptual losses: LPIPS, and for offline work a distance of EfficientNet-Lite0 features.

The second is never called LPIPS. `PERCEPTUAL` lists both by name; a builder (assets, dropout) returns (loss, stamp of
its weights) and says by `engine.assets.needs_assets` which files these are. A loss computes in float32, whatever the
autocast region around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.assets import AssetsConfig, needs_assets
from engine.devices import full_precision
from engine.flops import FORWARD, THROUGH, same_chain_flops
from tokenizer.frozen.base import Frozen
from tokenizer.frozen.lite0 import LITE0_ASSET, lite0_features, lite0_flops
from tokenizer.frozen.lpips import LPIPS_BACKBONES, lpips_distance, lpips_features, lpips_network

LITE0_LOSS_STRIDES = (2, 4, 8, 16)


class PerceptualLoss(nn.Module):
    """Base class: the mean distance of image pairs, in features of a frozen network.

        loss(images, references) -> scalar      images, references (B,3,H,W) in [-1,1], not clamped

    Several images can be compared with the same references, whose features are then computed once:

        features = loss.features(references)
        loss.distance(images, features)

    Gradients go to `images` alone.
    """

    def __init__(self, network: Frozen) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        return self.distance(images, self.features(references))

    @torch.no_grad()
    def features(self, references: Tensor) -> Any:
        """What `distance` needs of the references (B,3,H,W)."""
        with full_precision(references.device):
            return self._features(references.float())

    def distance(self, images: Tensor, features: Any) -> Tensor:
        """The loss of images (B,3,H,W) and the `features` of their references."""
        with full_precision(images.device):
            return self._distance(self._features(images.float()), features)

    def _features(self, images: Tensor) -> Any:
        """The features of images (B,3,H,W)."""
        raise NotImplementedError

    def _distance(self, features: Any, references: Any) -> Tensor:
        """The mean distance over pairs, from the features of both."""
        raise NotImplementedError

    def training_flops(self, image_size: int, comparisons: int) -> int | None:
        """Operations for one reference and so many images that are compared with it, with their gradients.

        See `engine.flops`; None = not counted.
        """
        return None


class LPIPSLoss(PerceptualLoss):
    """Mean LPIPS distance of image pairs.

    `dropout` puts the dropout layers of LPIPS in training mode, as GigaTok's released trainer does by accident.
    """

    def __init__(self, network: Frozen, dropout: bool = False) -> None:
        super().__init__(network)
        if dropout:
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    nn.Module.train(module, True)

    def _features(self, images: Tensor) -> list[Tensor]:
        return lpips_features(self.network, images)

    def _distance(self, features: list[Tensor], references: list[Tensor]) -> Tensor:
        return lpips_distance(self.network, features, references).mean()

    def training_flops(self, image_size: int, comparisons: int) -> int:
        passes = comparisons * THROUGH + FORWARD
        return passes * same_chain_flops(self.network.network.net.modules(), image_size)


class Lite0Loss(PerceptualLoss):
    """The form of LPIPS on EfficientNet-Lite0, without learned weights.

    It is not calibrated, and not comparable with LPIPS. Features have unit length over channels; their squared
    difference is summed over channels and averaged over pixels and pairs, then over the four strides.
    """

    def _features(self, images: Tensor) -> list[Tensor]:
        maps = self.network(images)
        return [features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt() for features in maps]

    def _distance(self, features: list[Tensor], references: list[Tensor]) -> Tensor:
        total = features[0].new_zeros(())
        for x, y in zip(features, references, strict=True):
            total = total + (x - y).square().sum(1).mean()
        return total / len(features)

    def training_flops(self, image_size: int, comparisons: int) -> int:
        forward, backward = lite0_flops(self.network, image_size)
        return comparisons * (forward + backward) + forward


@needs_assets(LPIPS_BACKBONES["vgg"])
def _build_lpips(assets: AssetsConfig, dropout: bool) -> tuple[PerceptualLoss, str]:
    network, stamp = lpips_network(assets)
    return LPIPSLoss(network, dropout), stamp


@needs_assets(LITE0_ASSET)
def _build_lite0(assets: AssetsConfig, dropout: bool) -> tuple[PerceptualLoss, str]:
    network, stamp = lite0_features(assets, LITE0_LOSS_STRIDES)
    return Lite0Loss(network), stamp


PERCEPTUAL: dict[str, Callable[[AssetsConfig, bool], tuple[PerceptualLoss, str]]] = {
    "lpips": _build_lpips,
    "efficientnet_lite0": _build_lite0,
}
