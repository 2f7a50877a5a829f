"""The PatchGAN discriminator of VQGAN (Isola et al., arXiv:1611.07004): one logit per overlapping patch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.flops import THROUGH, TRAINED, PartFlops, conv_flops
from engine.validation import Problem, Section, at_least
from tokenizer.discriminators.base import Discriminator

KERNEL = 4  # pixels, side of every convolution


@dataclass(kw_only=True, slots=True)
class PatchGANConfig(Section):
    """Sizes; three strided layers of 64 channels are VQGAN's."""

    base_channels: int = 64  # channels of the first layer; each further layer has twice as many, up to 8 times
    num_layers: int = 3  # strided layers; fewer for images below 64 pixels
    norm: Literal["batch", "none"] = "batch"  # batch as released; none makes training independent of batch division

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "base_channels", 1)
        yield from at_least(self, "num_layers", 1)


class PatchGAN(Discriminator):
    """Images (B,3,H,W) -> logits (B,1,h,w); three strided layers, so 256 pixels give 30 x 30 logits.

    Batch norms take the statistics of this rank's batch, of real and generated images separately.
    """

    config_class = PatchGANConfig

    def __init__(self, config: PatchGANConfig, assets: AssetsConfig | None = None) -> None:
        super().__init__(config, assets)
        use_norm = config.norm == "batch"

        # A first layer without a norm.
        width = config.base_channels
        layers: list[nn.Module] = [nn.Conv2d(3, width, KERNEL, stride=2, padding=1), nn.LeakyReLU(0.2)]

        # Wider layers; the last of them keeps the resolution.
        for number in range(1, config.num_layers + 1):
            wider = config.base_channels * min(2**number, 8)
            stride = 2 if number < config.num_layers else 1
            layers.append(nn.Conv2d(width, wider, KERNEL, stride=stride, padding=1, bias=not use_norm))
            if use_norm:
                layers.append(nn.BatchNorm2d(wider))
            layers.append(nn.LeakyReLU(0.2))
            width = wider

        # One logit per patch.
        layers.append(nn.Conv2d(width, 1, KERNEL, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(self._init)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)

    @classmethod
    def min_image_size(cls, config: PatchGANConfig) -> int:
        """The two last convolutions leave one pixel of three; each strided layer halves."""
        return 3 * 2**config.num_layers

    def logits(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def training_flops(self, image_size: int) -> tuple[PartFlops, ...]:
        side, forward = image_size, 0
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                side = (side + 2 - KERNEL) // layer.stride[0] + 1
                forward += conv_flops(layer, side**2)
        return (PartFlops("discriminator", "convolution", (THROUGH + 2 * TRAINED) * forward),)
