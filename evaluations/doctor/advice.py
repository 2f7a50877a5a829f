"""What to do against a symptom. Advice names only keys that the run has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.config import flatten
from evaluations.doctor.evidence import RunEvidence

KMEANS_INIT = "kmeans"  # value of a quantizer's `init`


@dataclass(frozen=True)
class Advice:
    """Something to change, for the runs that it `fits`."""

    text: str
    fits: Callable[[RunEvidence], bool] = lambda run: True


def has_key(key: str) -> Callable[[RunEvidence], bool]:
    """Whether the run's config has a dotted key."""
    return lambda run: run.get(key) is not None


def has_text(key: str) -> Callable[[RunEvidence], bool]:
    """Whether the run's config has a text that is not empty under a dotted key."""
    return lambda run: bool(run.get(key))


def quantizer_has(field: str) -> Callable[[RunEvidence], bool]:
    """Whether the section of the run's quantizer has a field."""
    return lambda run: field in run.quantizer_section


def quantizer_computes(loss: str) -> Callable[[RunEvidence], bool]:
    """Whether the run's quantizer computes a loss."""
    return lambda run: run.tokenizer is not None and loss in run.tokenizer.quantizer.loss_names


def has_other_init(run: RunEvidence) -> bool:
    """Whether the run's quantizer could be initialized with k-means and is not."""
    return run.quantizer_section.get("init", KMEANS_INIT) != KMEANS_INIT


def has_codes_to_restart(run: RunEvidence) -> bool:
    """Whether the run's quantizer could restart codes that nobody uses, and does not."""
    return run.tokenizer is not None and run.tokenizer.quantizer.can_restart_codes


def has_dropout(run: RunEvidence) -> bool:
    """Whether the run's model has a dropout rate."""
    return any("dropout" in key for key in flatten(run.get("model", {})))


def is_not_fp32(run: RunEvidence) -> bool:
    """Whether the run is trained in a lower precision."""
    return run.get("loop.precision", "fp32") != "fp32"


# ------------------------------------------------------------------------------------------------ used more than once
KMEANS = Advice("warm up the quantizer with init=kmeans", fits=has_other_init)
RESTART = Advice("restart unused codes (the quantizer's restart=nearest)", fits=has_codes_to_restart)
ADD_ENTROPY = Advice("add entropy loss", fits=quantizer_computes("entropy"))
LOWER_LR = Advice("lower optim.lr", fits=has_key("optim.lr"))
LOWER_PROBE_LRS = Advice("lower probe.base_lrs", fits=has_key("probe.base_lrs"))
FP32 = Advice("use loop.precision=fp32", fits=is_not_fp32)
