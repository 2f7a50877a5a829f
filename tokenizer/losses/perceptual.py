"""Perceptual losses: LPIPS, and for offline work a distance of EfficientNet-Lite0 features (never called LPIPS)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.devices import full_precision
from tokenizer.frozen.base import Frozen
from tokenizer.frozen.lite0 import lite0_features
from tokenizer.frozen.lpips import lpips_network

LITE0_LOSS_STRIDES = (2, 4, 8, 16)


class LPIPSLoss(nn.Module):
    """Mean LPIPS distance of image pairs in [-1,1] (not clamped), in fp32 and without dropout."""

    def __init__(self, network: Frozen, dropout: bool = False) -> None:
        super().__init__()
        self.network = network
        if dropout:  # compat: the released trainer leaves LPIPS in training mode by accident
            for module in network.modules():
                if isinstance(module, nn.Dropout):
                    nn.Module.train(module, True)

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        with full_precision(images.device):
            return self.network(images.float(), references.float()).mean()


class Lite0Loss(nn.Module):
    """Squared differences of channel-normalised EfficientNet-Lite0 features, mean over pixels, summed over channels,
    mean over four strides. The form of LPIPS without its learned weights: not calibrated, and not comparable with
    LPIPS.
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
                a, b = normed.chunk(2)
                total = total + (a - b).square().sum(1).mean()
            return total / len(maps)


def _lpips(assets: AssetsConfig, dropout: bool) -> tuple[nn.Module, str]:
    network, stamp = lpips_network(assets)
    return LPIPSLoss(network, dropout), stamp


def _lite0(assets: AssetsConfig, dropout: bool) -> tuple[nn.Module, str]:
    network, stamp = lite0_features(assets, LITE0_LOSS_STRIDES)
    return Lite0Loss(network), stamp


PERCEPTUAL: dict[str, Callable[[AssetsConfig, bool], tuple[nn.Module, str]]] = {
    "lpips": _lpips,
    "efficientnet_lite0": _lite0,
}
