"""Discriminators by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from engine.assets import AssetsConfig
from engine.messages import ConfigError
from engine.registry import lookup
from tokenizer.discriminators.dino import SIZE, DINODiscriminator
from tokenizer.discriminators.patchgan import PatchGAN
from tokenizer.frozen.timm_vit import timm_vit


@dataclass(kw_only=True, slots=True)
class DiscriminatorConfig:
    """Which discriminator, how strong, from when on."""

    name: str = "none"  # none | patchgan | dino (heads on a frozen DINO-v1, with DiffAug)
    start_step: int = 20000  # first update, counted from 1 as in the log, that trains and uses it
    weight: float = 0.5  # of the generator's term
    base_channels: int = 64  # patchgan
    num_layers: int = 3  # patchgan; fewer for images below 64 pixels
    norm: Literal["batch", "none"] = "batch"
    generator_loss: Literal["hinge", "non_saturating"] = "hinge"  # the second, of WeTok: on the mean logit of an image
    lecam_weight: float = 0.0  # of LeCam's regularization in the discriminator's loss; 0 = off
    lecam_decay: float = 0.999  # of its averages of the logits
    weigh_own_loss: bool = True  # whether `weight` also multiplies the discriminator's loss: GigaTok yes, WeTok no

    def __post_init__(self) -> None:
        lookup({"none": None, **DISCRIMINATORS}, self.name, "loss.discriminator.name")
        if self.weight < 0 or self.lecam_weight < 0 or not 0 <= self.lecam_decay < 1:
            raise ConfigError(
                f"loss.discriminator.weight={self.weight} and .lecam_weight={self.lecam_weight} must be 0 or more, "
                f".lecam_decay={self.lecam_decay} in [0, 1)"
            )
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
