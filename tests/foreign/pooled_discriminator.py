"""A foreign discriminator: one logit per image, and a least-squares loss."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.validation import Problem, Section, at_least
from tokenizer.discriminators.base import Discriminator
from tokenizer.discriminators.gan_losses import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES
from tokenizer.discriminators.registry import DISCRIMINATORS


@dataclass(kw_only=True, slots=True)
class PooledConfig(Section):
    """Its only size."""

    channels: int = 8

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "channels", 1)


class Pooled(Discriminator):
    """Images (B,3,H,W) -> logits (B,1)."""

    config_class = PooledConfig

    def __init__(self, config: PooledConfig, assets: AssetsConfig) -> None:
        super().__init__(config, assets)
        self.conv = nn.Conv2d(3, config.channels, 4, 2)
        self.head = nn.Linear(config.channels, 1)

    @classmethod
    def min_image_size(cls, config: PooledConfig) -> int:
        return 4

    def logits(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).relu().mean((2, 3)))


DISCRIMINATORS["pooled"] = Pooled
GENERATOR_LOSSES["least_squares"] = lambda fake: (fake.float() - 1).square().mean()
DISCRIMINATOR_LOSSES["least_squares"] = lambda real, fake: (
    ((real.float() - 1).square().mean() + (fake.float() + 1).square().mean()) / 2
)
