"""Symptoms of a codebook: too few codes in use, losses that pull the codes the wrong way, codes that bf16 changes.

Use is counted over recent training tokens, losses are read from the records of the training.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from engine.config import merge_config
from engine.data.config import DataConfig
from engine.data.images import to_float
from engine.data.samples import center_batch
from engine.data.sources import open_source
from engine.devices import autocast
from engine.messages import UserError
from evaluations.doctor.evidence import RunEvidence
from evaluations.doctor.severity import Severity, worst
from tokenizer.losses.terms import PICTURE_WEIGHTS
from tokenizer.quantizers.usage import usage_of_counts

MIN_COMMITMENT = 1e-12  # of a loss that is divided by


# ------------------------------------------------------------------------------------------------ use of the codes
def collapse_of(counts: torch.Tensor, group: str) -> Severity:
    """Compares the perplexity of counts (K,) with 5 % of the codes, or K^(1/4) if they are few."""
    size = len(counts)
    return _low_perplexity(counts, group, max(0.05 * size, size**0.25))  # 2 of 16 codes, 1.4 of 4


def scale_collapse_of(counts: torch.Tensor, side: int) -> Severity:
    """Compares the perplexity of counts (K,) at a scale with K^(1/4): a coarse one may do with few of the codes."""
    return _low_perplexity(counts, f"scale {side} x {side}: ", len(counts) ** 0.25)


def _low_perplexity(counts: torch.Tensor, part: str, threshold: float) -> Severity:
    size = len(counts)
    perplexity = usage_of_counts([counts], [size], (counts > 0).sum())["codebook_perplexity"].item()
    return Severity(threshold / perplexity, f"{part}perplexity {perplexity:.1f} of {size} codes")


def unused_of(counts: torch.Tensor, group: str) -> Severity:
    """Compares the fraction of codes without a token with 25 %."""
    unused = (counts == 0).double().mean().item()
    return Severity(unused / 0.25, f"{group}{unused:.0%} of {len(counts)} codes unused")


def _worst_group(run: RunEvidence, read: Callable[[torch.Tensor, str], Severity], min_tokens: int) -> Severity | None:
    """Applies `read` to each group with `min_tokens` or more tokens per code.

    `read` is given the counts of the group, and its name if there are several.
    """
    severities = []
    for group, counts in run.code_counts.items():
        if counts.sum() >= min_tokens * len(counts):
            name = f"group {group}: " if run.tokenizer.quantizer.num_groups > 1 else ""
            severities.append(read(counts, name))
    return worst(severities)


def codebook_collapse(run: RunEvidence) -> Severity | None:
    """Perplexity below 5 % of the codes: uniform use has 100 %, healthy runs 50 % and more.

    Of scales that share the codes each has to do with more than K^(1/4) of them.
    """
    of_groups = _worst_group(run, collapse_of, min_tokens=0)
    of_scales = [scale_collapse_of(counts, side) for side, counts in run.scale_counts.items()]
    return worst([*([of_groups] if of_groups is not None else []), *of_scales])


def dead_codes(run: RunEvidence) -> Severity | None:
    """More than a quarter of the codes unused among at least four tokens per code.

    By chance it would be 2 %. Not in the first tenth of a run, where codes still spread. Where scales share the codes,
    it is told how many each of them leaves.
    """
    if run.is_early:
        return None
    severity = _worst_group(run, unused_of, min_tokens=4)
    if severity is None or not run.scale_counts:
        return severity
    unused = (f"{side} x {side} {(counts == 0).double().mean():.0%}" for side, counts in run.scale_counts.items())
    return Severity(severity.ratio, f"{severity.evidence} (by scale: {', '.join(unused)})")


# ------------------------------------------------------------------------------------------------ losses
def _picture_loss(run: RunEvidence, value: Callable[[str], float | None]) -> float:
    """Sums the weighted pixel and perceptual terms; `value` gives the value of a term by its name."""
    return sum((value(name) or 0.0) * run.get(f"loss.{field}", 0.0) for name, field in PICTURE_WEIGHTS.items())


def commitment_imbalance(run: RunEvidence) -> Severity | None:
    """Commitment above 2 x the picture terms, or latents that are glued to their codes.

    In the first case the encoder serves the codebook. The second is an error below a thousandth of a code's squared
    length, where all codes have the same; thousands of codes leave some percent.
    """
    commitment = run.late("commitment")
    picture = _picture_loss(run, run.late)
    if run.tokenizer is None or commitment is None or picture <= 0:
        return None
    if "commitment" not in run.tokenizer.trained_quantizer_losses:
        return None  # The quantizer is frozen: what is recorded is no loss.

    ratio = commitment * run.get("loss.commitment_weight", 0.0) / picture
    severities = [Severity(ratio / 2, f"weighted commitment loss is {ratio:.2g} x the picture terms")]
    code_power = run.tokenizer.quantizer.health().get("code_power")
    if code_power is not None:
        error = max(commitment, MIN_COMMITMENT) / code_power
        severities.append(Severity(1e-3 / error, f"error {error:.2g} of the codes (0: latents are glued to them)"))
    return worst(severities)


def entropy_imbalance(run: RunEvidence) -> Severity | None:
    """Entropy terms above 5 x the picture terms, or an almost uniform assignment.

    The most that the entropy terms can gain counts, against the picture terms at the start: later those vanish and
    entropies do not. Almost uniform is within 20 % of the entropy of latents that prefer no code.
    """

    def early(name: str) -> float:
        return median(run.series(name)[:2] or [0.0])

    entropy = run.late("sample_entropy")
    picture = _picture_loss(run, early)
    if run.tokenizer is None or entropy is None or picture <= 0:
        return None
    largest = run.tokenizer.quantizer.health().get("max_sample_entropy")
    if largest is None:
        return None

    gain = largest * run.get("loss.entropy_weight", 0.0) / picture
    gains = f"weighted entropy loss can gain {gain:.2g} x the picture terms at the start"
    undecided = f"sample_entropy {entropy:.2f} of at most {largest:.2f} nats, those of latents that prefer no code"
    distance = max(1 - entropy / largest, 1e-9)
    return worst([Severity(gain / 5, gains), Severity(0.2 / distance, undecided)])


# ------------------------------------------------------------------------------------------------ precision
def precision_flips(run: RunEvidence) -> Severity | None:
    """Over 10 % of the codes differ between bf16 and fp32.

    The run trains in bf16; evaluation and extraction of codes are in fp32.
    """
    data = run.get("data")
    if run.tokenizer is None or run.get("loop.precision") != "bf16" or "root" not in data:
        return None
    config = merge_config(DataConfig, [("config.yaml", data)])
    try:
        source = open_source(config, "train")
    except UserError:  # The images are elsewhere; --data says so.
        return None

    images = to_float(center_batch(source, config.image_size, range(min(32, len(source))), skip_broken=True))
    exact = run.tokenizer.encode(images).indices
    with autocast(images.device, "bf16"):
        rounded = run.tokenizer.encode(images).indices
    flipped = (rounded != exact).double().mean().item()
    return Severity(flipped / 0.1, f"{flipped:.0%} of the codes of {len(images)} images differ between bf16 and fp32")
