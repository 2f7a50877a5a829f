"""The terms of the tokenizer loss: name, weight, and in which updates each is active. Printed at the start of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from engine.messages import ConfigError
from engine.registry import lookup
from tokenizer.discriminators.registry import DiscriminatorConfig
from tokenizer.losses.perceptual import PERCEPTUAL


@dataclass(kw_only=True, slots=True)
class ShortcutConfig:
    """GigaTok's shortcut trick: early on, the CNN decoder also reconstructs from the CNN encoder's features directly,
    and the transformer decoder's features are regressed to them.
    """

    end_step: int = 0  # the terms are active while the update number (from 1) is below this; 0 = off
    reconstruction_weight: float = 1.0  # of pixel and perceptual loss of the direct reconstruction; 0 = not computed
    feature_weight: float = 1.0  # of mean |sg(encoder features) - decoder features|^2

    def __post_init__(self) -> None:
        if min(self.reconstruction_weight, self.feature_weight) < 0:
            raise ConfigError("loss.shortcut: reconstruction_weight and feature_weight must be 0 or more")


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Weights of the loss terms; 0 switches a term off and skips its computation."""

    l2_weight: float = 1.0  # mean squared error of pixels in [-1,1]
    l1_weight: float = 0.0  # mean absolute error
    perceptual: str = "lpips"  # lpips | efficientnet_lite0
    perceptual_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.0
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)
    lpips_dropout: bool = False  # compat: the released trainer runs LPIPS with dropout by accident

    def __post_init__(self) -> None:
        lookup(PERCEPTUAL, self.perceptual, "loss.perceptual")
        for name in (
            "l2_weight",
            "l1_weight",
            "perceptual_weight",
            "codebook_weight",
            "commitment_weight",
            "entropy_weight",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"loss.{name}={getattr(self, name)} must be 0 or more")


@dataclass(frozen=True)
class Term:
    """One summand: active in updates first..last, counted from 1."""

    name: str
    weight: float
    first: int = 1
    last: float = math.inf

    def active(self, number: int) -> bool:
        return self.weight > 0 and self.first <= number <= self.last


OF_QUANTIZERS = frozenset({"codebook", "commitment", "entropy"})  # terms that a quantizer may have


def loss_terms(
    loss: LossConfig, semantic_weight: float, warmup_steps: int, of_quantizer: frozenset[str] = OF_QUANTIZERS
) -> list[Term]:
    """All terms with a weight above 0, of those of quantizers only the ones in `of_quantizer`. `warmup_steps` updates
    at the start run without quantization.
    """
    shortcut, end = loss.shortcut, loss.shortcut.end_step - 1
    direct = shortcut.reconstruction_weight
    quantized = warmup_steps + 1
    terms = [
        Term("reconstruction_l2", loss.l2_weight),
        Term("reconstruction_l1", loss.l1_weight),
        Term("perceptual", loss.perceptual_weight),
        Term("codebook", loss.codebook_weight, quantized),
        Term("commitment", loss.commitment_weight, quantized),
        Term("entropy", loss.entropy_weight, quantized),
        Term("semantic", semantic_weight),
        Term(
            "adversarial", loss.discriminator.weight if loss.discriminator.enabled else 0, loss.discriminator.start_step
        ),
        Term("shortcut_l2", direct * loss.l2_weight, last=end),
        Term("shortcut_l1", direct * loss.l1_weight, last=end),
        Term("shortcut_perceptual", direct * loss.perceptual_weight, last=end),
        Term("shortcut_feature", shortcut.feature_weight, last=end),
    ]
    absent = OF_QUANTIZERS - of_quantizer
    return [t for t in terms if t.weight > 0 and t.last >= t.first and t.name not in absent]


def weighted_sum(terms: Sequence[Term], values: Mapping[str, Tensor], number: int) -> Tensor:
    """The total loss of update `number`: the one place where weights meet values."""
    return sum((term.weight * values[term.name] for term in terms if term.active(number)), start=0.0)


def terms_table(terms: Sequence[Term], steps: int) -> str:
    """The active terms as a table for people."""
    lines = ["loss terms            weight   first update   last update"]
    for t in terms:
        last = "end" if t.last >= steps else f"{t.last:.0f}"
        lines.append(f"  {t.name:20s}{t.weight:8g}{t.first:15d}{last:>14s}")
    return "\n".join(lines)
