"""The adversarial game: hinge losses (arXiv:1705.02894) and the discriminators by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import ConfigError, lookup
from tokenizer.losses.patchgan import PatchGAN


@dataclass(kw_only=True, slots=True)
class DiscriminatorConfig:
    """Which discriminator, how strong, from when on."""

    name: str = "none"  # none | patchgan
    start_step: int = 20000  # first update, counted from 1 as in the log, that trains and uses it
    weight: float = 0.5  # of the generator's term; as released, it also multiplies the discriminator's own loss
    base_channels: int = 64
    num_layers: int = 3  # fewer for images below 64 pixels
    norm: Literal["batch", "none"] = "batch"

    def __post_init__(self) -> None:
        lookup({"none": None, **DISCRIMINATORS}, self.name, "loss.discriminator.name")
        if self.num_layers < 1 or self.base_channels < 1:
            raise ConfigError("loss.discriminator: num_layers and base_channels must be 1 or more")

    @property
    def enabled(self) -> bool:
        return self.name != "none" and self.weight > 0


def build_patchgan(config: DiscriminatorConfig) -> nn.Module:
    return PatchGAN(config.base_channels, config.num_layers, config.norm)


DISCRIMINATORS: dict[str, Callable[[DiscriminatorConfig], nn.Module]] = {"patchgan": build_patchgan}


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """-mean D(generated)."""
    return -fake_logits.float().mean()


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(mean max(0, 1 - D(real)) + mean max(0, 1 + D(generated))) / 2."""
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2
