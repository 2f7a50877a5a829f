"""The terms of the tokenizer loss: name, weight, and in which steps each is active. Printed at the start of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from engine.messages import UserError
from engine.validation import Problem, Section, at_least, one_of
from tokenizer.discriminators.registry import DiscriminatorConfig
from tokenizer.losses.perceptual import PERCEPTUAL

# Terms whose value the quantizer computes, and the field of `LossConfig` with their weight.
QUANTIZER_WEIGHTS = {
    "codebook": "codebook_weight",
    "commitment": "commitment_weight",
    "entropy": "entropy_weight",
}
QUANTIZER_TERMS = tuple(QUANTIZER_WEIGHTS)
# Terms that compare a reconstruction with its original, and the field of `LossConfig` with their weight.
PICTURE_WEIGHTS = {
    "reconstruction_l2": "l2_weight",
    "reconstruction_l1": "l1_weight",
    "perceptual": "perceptual_weight",
}
# The same of the shortcut reconstruction, whose weight is multiplied by that of the shortcut.
SHORTCUT_PICTURE_WEIGHTS = {
    "shortcut_l2": "l2_weight",
    "shortcut_l1": "l1_weight",
    "shortcut_perceptual": "perceptual_weight",
}
# The same of a reconstruction from the first tokens of an image, of tokenizers of flexible length.
PREFIX_PICTURE_WEIGHTS = {
    f"prefix_{name.removeprefix('reconstruction_')}": key for name, key in PICTURE_WEIGHTS.items()
}
# All terms by name, beside those that a quantizer names itself: the usual ones, and those of the shortcut trick.
MAIN_TERMS = (*PICTURE_WEIGHTS, *QUANTIZER_TERMS, "semantic", "adversarial")
SHORTCUT_TERMS = (*SHORTCUT_PICTURE_WEIGHTS, "shortcut_feature")


@dataclass(kw_only=True, slots=True)
class ShortcutConfig(Section):
    """GigaTok's shortcut trick: early on, the CNN decoder also reconstructs from the CNN encoder's features directly,
    and the transformer decoder's features are regressed to them.
    """

    end_step: int = 0  # the terms are active while the update, counted from 1, is below this; 0 = off
    reconstruction_weight: float = 1.0  # weight of pixel and perceptual loss of the shortcut; 0 = not computed
    feature_weight: float = 1.0  # weight of mean |sg(encoder features) - decoder features|^2

    def problems(self) -> Iterator[Problem]:
        """Steps and weights below 0."""
        for name in ("end_step", "reconstruction_weight", "feature_weight"):
            yield from at_least(self, name, 0)


@dataclass(kw_only=True, slots=True)
class LossConfig(Section):
    """Weights of the loss terms; 0 switches a term off and skips its computation."""

    l2_weight: float = 1.0  # mean squared error of pixels in [-1,1]
    l1_weight: float = 0.0  # mean absolute error
    perceptual: str = "lpips"  # lpips | efficientnet_lite0
    perceptual_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.0
    quantizer_weights: dict[str, float] = field(default_factory=dict)  # weights of losses that a quantizer names itself
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)
    lpips_dropout: bool = False  # compat: the released trainer runs LPIPS with dropout by accident

    def problems(self) -> Iterator[Problem]:
        """Weights below 0, and a perceptual loss that does not exist."""
        yield from one_of(self, "perceptual", PERCEPTUAL)
        for name in ("l2_weight", "l1_weight", "perceptual_weight"):
            yield from at_least(self, name, 0)
        for name in ("codebook_weight", "commitment_weight", "entropy_weight"):
            yield from at_least(self, name, 0)
        for name, weight in self.quantizer_weights.items():
            if not weight >= 0:
                yield Problem(f"quantizer_weights.{name}", weight, "0 or more")


@dataclass(frozen=True)
class Term:
    """One summand of the loss, active in steps `first` to `last`, counted from 0."""

    name: str
    weight: float
    first: int = 0
    last: float = math.inf

    def is_active(self, step: int) -> bool:
        """Whether the term counts in update `step`, counted from 0."""
        return self.first <= step <= self.last


def loss_terms(
    loss: LossConfig,
    *,
    semantic_weight: float,
    warmup_steps: int,
    quantizer_losses: frozenset[str] = frozenset(QUANTIZER_TERMS),
    quantizer_defaults: Mapping[str, float] | None = None,
    decodes_prefixes: bool = False,
    network_losses: Mapping[str, float] | None = None,
) -> list[Term]:
    """All terms with a weight above 0.

    `quantizer_losses` are those that the quantizer computes; `quantizer_defaults` are its weights for losses that it
    names itself. `warmup_steps` updates at the start run without quantization. `decodes_prefixes`: whether a step also
    decodes the first tokens of each image. `network_losses` are names and weights of losses that the tokenizer itself
    computes.
    """
    # Pixel and perceptual terms, always.
    picture_weights = PICTURE_WEIGHTS | (PREFIX_PICTURE_WEIGHTS if decodes_prefixes else {})
    terms = [Term(name, getattr(loss, weight)) for name, weight in picture_weights.items()]
    terms += [Term(name, weight) for name, weight in (network_losses or {}).items()]

    # Terms of the quantizer, after its warm-up.
    weights = {name: getattr(loss, weight) for name, weight in QUANTIZER_WEIGHTS.items()}
    named_by_quantizer = sorted(quantizer_losses - set(QUANTIZER_TERMS))
    defaults = quantizer_defaults or {}
    weights |= {name: loss.quantizer_weights.get(name, defaults.get(name, 0.0)) for name in named_by_quantizer}
    terms += [Term(name, weight, warmup_steps) for name, weight in weights.items() if name in quantizer_losses]

    # Semantic regularization, and the generator's part of the adversarial loss. Configs count updates from 1, terms
    # count them from 0.
    terms.append(Term("semantic", semantic_weight))
    adversarial_weight = loss.discriminator.weight if loss.discriminator.enabled else 0.0
    terms.append(Term("adversarial", adversarial_weight, loss.discriminator.first_judged_step - 1))

    # The shortcut trick, at the start. `end_step` counts from 1 and is the first update without it: the last one with
    # it is `end_step - 1`, and one less counted from 0.
    shortcut = loss.shortcut
    last = shortcut.end_step - 2
    for name, weight in SHORTCUT_PICTURE_WEIGHTS.items():
        terms.append(Term(name, shortcut.reconstruction_weight * getattr(loss, weight), last=last))
    terms.append(Term("shortcut_feature", shortcut.feature_weight, last=last))

    return [term for term in terms if term.weight > 0 and term.last >= term.first]


def active_terms(terms: Sequence[Term], step: int) -> frozenset[str]:
    """Names of the terms that count in update `step`, counted from 0."""
    return frozenset(term.name for term in terms if term.is_active(step))


def outputs_needed(names: Collection[str]) -> dict[str, bool]:
    """What the terms `names` need of a tokenizer beside its reconstruction: arguments of `Tokenizer.forward`."""
    return {
        "entropy": "entropy" in names,
        "semantic": "semantic" in names,
        "shortcut": any(name in names for name in SHORTCUT_PICTURE_WEIGHTS),
    }


def weighted_sum(terms: Sequence[Term], values: Mapping[str, Tensor], step: int) -> Tensor:
    """The total loss of update `step`, counted from 0.

    The one place where the tokenizer's loss terms are weighted and summed.
    """
    missing = [term.name for term in terms if term.is_active(step) and term.name not in values]
    if missing:
        raise UserError(
            f"the loss term {missing[0]} has a weight, but nothing computed its value (computed: "
            f"{', '.join(sorted(values))}); does the quantizer announce it in loss_names without returning it?"
        )
    return sum((term.weight * values[term.name] for term in terms if term.is_active(step)), start=0.0)


def terms_table(terms: Sequence[Term], steps: int) -> str:
    """The terms as a table for people; updates are counted from 1."""
    lines = ["loss terms            weight   first update   last update"]
    for term in terms:
        last_update = term.last + 1
        last = "end" if last_update >= steps else f"{last_update:.0f}"
        lines.append(f"  {term.name:20s}{term.weight:8g}{term.first + 1:15d}{last:>14s}")
    return "\n".join(lines)
