"""Which discriminator, how strong, and from when on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from engine.assets import AssetsConfig
from engine.registry import selected_section
from engine.validation import Problem, Section, at_least, in_range, one_of
from tokenizer.discriminators.base import Discriminator
from tokenizer.discriminators.dino import DINOConfig, DINODiscriminator
from tokenizer.discriminators.gan_losses import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES
from tokenizer.discriminators.patchgan import PatchGAN, PatchGANConfig

DISCRIMINATORS: dict[str, type[Discriminator]] = {"patchgan": PatchGAN, "dino": DINODiscriminator}
OFF = "none"


@dataclass(kw_only=True, slots=True)
class DiscriminatorConfig(Section):
    """`name` picks the discriminator, the section of that name configures it."""

    REGISTRY: ClassVar[Mapping[str, Any]] = DISCRIMINATORS

    name: str = OFF  # none | patchgan | dino (heads on a frozen DINO-v1, with DiffAug)
    patchgan: PatchGANConfig = field(default_factory=PatchGANConfig)
    dino: DINOConfig = field(default_factory=DINOConfig)
    start_step: int = 20000  # first update, counted from 1 as in the log, that trains and uses it
    warmup_steps: int = 0  # updates from there on that train it alone; the tokenizer, which waits, meets it after them
    weight: float = 0.5  # weight of the generator's term
    generator_loss: str = "hinge"  # hinge | non_saturating (WeTok: on the mean logit of an image)
    discriminator_loss: str = "hinge"
    lecam_weight: float = 0.0  # weight of LeCam's regularization in the discriminator's loss; 0 = off
    lecam_decay: float = 0.999  # decay of its averages of the logits
    weigh_own_loss: bool = True  # whether `weight` also multiplies the discriminator's loss: GigaTok yes, WeTok no

    def problems(self) -> Iterator[Problem]:
        yield from one_of(self, "name", {OFF, *DISCRIMINATORS})
        yield from at_least(self, "start_step", 1)
        yield from at_least(self, "warmup_steps", 0)
        yield from at_least(self, "weight", 0)
        yield from one_of(self, "generator_loss", GENERATOR_LOSSES)
        yield from one_of(self, "discriminator_loss", DISCRIMINATOR_LOSSES)
        yield from at_least(self, "lecam_weight", 0)
        yield from in_range(self, "lecam_decay", 0, 1, open_right=True)

    @property
    def enabled(self) -> bool:
        """Whether there is a discriminator at all."""
        return self.name != OFF and self.weight > 0

    @property
    def first_judged_step(self) -> int:
        """The first update, counted from 1, in which the tokenizer's loss has the adversarial term."""
        return self.start_step + self.warmup_steps

    def is_warmup(self, step: int) -> bool:
        """Whether update `step`, counted from 0, trains the discriminator alone."""
        return self.enabled and self.start_step <= step + 1 < self.first_judged_step


def build_discriminator(config: DiscriminatorConfig, assets: AssetsConfig) -> Discriminator:
    """The discriminator that `config` describes, freshly initialized. Raises ConfigError for a section not in use."""
    section = selected_section(config, DISCRIMINATORS, "loss.discriminator")
    return DISCRIMINATORS[config.name](section, assets)
