"""The adversarial game: the losses of both sides, LeCam's regularization, and the discriminators by name.

hinge: arXiv:1705.02894; non-saturating: arXiv:1406.2661; LeCam: arXiv:2104.03310.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.config import ConfigError, lookup
from engine.distributed import mean_over_ranks
from tokenizer.losses.backbones import timm_vit
from tokenizer.losses.dino_discriminator import SIZE, DINODiscriminator
from tokenizer.losses.patchgan import PatchGAN


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


def generator_hinge(fake_logits: Tensor) -> Tensor:
    """-mean D(generated)."""
    return -fake_logits.float().mean()


def discriminator_hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(mean max(0, 1 - D(real)) + mean max(0, 1 + D(generated))) / 2."""
    return (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean()) / 2


def generator_non_saturating(fake_logits: Tensor) -> Tensor:
    """Mean over images of -log sigmoid(mean D(generated)); logits (B,1,h,w)."""
    return F.softplus(-fake_logits.float().flatten(1).mean(1)).mean()


GENERATOR_LOSSES = {"hinge": generator_hinge, "non_saturating": generator_non_saturating}


class LeCam:
    """LeCam's regularization: mean relu(real - average generated)^2 + mean relu(average real - generated)^2.

    The averages of the batches' mean logits, over all ranks, take in the present batch first, unless its logits are not
    finite: such an update is skipped, and must not spoil those after it. They are training state.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        self.decay = decay
        self.averages = torch.zeros(2, device=device)  # of real and of generated logits

    def __call__(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        real, fake = real_logits.float(), fake_logits.float()
        means = mean_over_ranks(torch.stack([real.mean(), fake.mean()]).detach())
        self.averages = self.averages.lerp(torch.where(means.isfinite(), means, self.averages), 1 - self.decay)
        average_real, average_fake = self.averages
        return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()

    def state_dict(self) -> dict[str, Tensor]:
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.averages = state["averages"].to(self.averages.device)
