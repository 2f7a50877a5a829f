"""The adversarial game: hinge losses (arXiv:1705.02894) and the discriminators by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.config import ConfigError, lookup
from tokenizer.losses.backbones import timm_vit
from tokenizer.losses.dino_discriminator import SIZE, DINODiscriminator
from tokenizer.losses.patchgan import PatchGAN


@dataclass(kw_only=True, slots=True)
class DiscriminatorConfig:
    """Which discriminator, how strong, from when on."""

    name: str = "none"  # none | patchgan | dino (heads on a frozen DINO-v1, with DiffAug)
    start_step: int = 20000  # first update, counted from 1 as in the log, that trains and uses it
    weight: float = 0.5  # of the generator's term; as released, it also multiplies the discriminator's own loss
    base_channels: int = 64  # patchgan
    num_layers: int = 3  # patchgan; fewer for images below 64 pixels
    norm: Literal["batch", "none"] = "batch"

    def __post_init__(self) -> None:
        lookup({"none": None, **DISCRIMINATORS}, self.name, "loss.discriminator.name")
        if self.weight < 0:
            raise ConfigError(f"loss.discriminator.weight={self.weight} must be 0 or more")
        if self.num_layers < 1 or self.base_channels < 1:
            raise ConfigError("loss.discriminator: num_layers and base_channels must be 1 or more")

    @property
    def enabled(self) -> bool:
        return self.name != "none" and self.weight > 0


def _patchgan(config: DiscriminatorConfig, assets: AssetsConfig) -> tuple[nn.Module, str | None]:
    return PatchGAN(config.base_channels, config.num_layers, config.norm), None


def _dino(config: DiscriminatorConfig, assets: AssetsConfig) -> tuple[nn.Module, str | None]:
    backbone, stamp = timm_vit("dino_s16", SIZE, assets)
    return DINODiscriminator(backbone), stamp


# name -> network, and the stamp of its pretrained part where it has one
DISCRIMINATORS: dict[str, Callable[[DiscriminatorConfig, AssetsConfig], tuple[nn.Module, str | None]]] = {
    "patchgan": _patchgan,
    "dino": _dino,
}


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """-mean D(generated)."""
    return -fake_logits.float().mean()


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(mean max(0, 1 - D(real)) + mean max(0, 1 + D(generated))) / 2."""
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2
