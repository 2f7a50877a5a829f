"""Symptoms of a codebook."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import torch
from omegaconf import DictConfig, OmegaConf

from engine.data.config import DataConfig
from engine.data.images import to_float
from engine.data.samples import center_batch
from engine.data.sources import open_source
from engine.devices import autocast
from engine.messages import UserError
from evaluations.doctor.evidence import PICTURE, RunEvidence, Severity, combine
from tokenizer.quantizers.usage import usage_of_counts


# ---------------------------------------------------------------------------------------------- the codebook
def _by_group(counts: Sequence[torch.Tensor], read: Callable[[torch.Tensor, str], tuple[float, str]]) -> Severity:
    """`read` of the counts (K,) of each group; the group is named where there are several."""
    names = [f"group {g}: " if len(counts) > 1 else "" for g in range(len(counts))]
    return combine([read(row, name) for row, name in zip(counts, names, strict=True)])


def collapse_of(row: torch.Tensor, name: str) -> tuple[float, str]:
    """Perplexity of counts (K,) against 5 % of the codes; of a few against K^(1/4): 2 of 16, 1.4 of 4."""
    perplexity = usage_of_counts([row], [len(row)], (row > 0).sum())["codebook_perplexity"].item()
    return max(0.05 * len(row), len(row) ** 0.25) / perplexity, f"{name}perplexity {perplexity:.1f} of {len(row)} codes"


def unused_of(row: torch.Tensor, name: str) -> tuple[float, str]:
    """Share of codes without a token against 25 %."""
    share = (row == 0).double().mean().item()
    return share / 0.25, f"{name}{share:.0%} of {len(row)} codes unused"


def codebook_collapse(run: RunEvidence) -> Severity:
    """Perplexity below 5 % of the codes: at a uniform use it is 100 %, healthy runs reach 50 % and more."""
    return _by_group(run.code_counts, collapse_of)


def dead_codes(run: RunEvidence) -> Severity:
    """More than a quarter of the codes unused among at least four tokens a code (2 % would be chance), after a tenth of
    the run: codes spread at first.
    """
    if run.step < 0.1 * run.get("loop.steps", 1):
        return None
    return _by_group([row for row in run.code_counts if row.sum() >= 4 * len(row)], unused_of)


def _picture(run: RunEvidence, value: Callable[[str], float | None]) -> float:
    """The weighted sum of pixel and perceptual terms, each by `value` of its name."""
    return sum((value(name) or 0.0) * run.get(f"loss.{weight}_weight", 0.0) for name, weight in PICTURE.items())


def _quantizer(run: RunEvidence) -> DictConfig:
    """The section of the quantizer in use."""
    return run.get(f"model.quantizer.{run.get('model.quantizer.name')}")


def commitment_imbalance(run: RunEvidence) -> Severity:
    """Commitment above 2 x the picture terms (the encoder serves the codebook), or, where the length of codes is known,
    an error of a thousandth of it: latents are glued to their codes. Thousands of codes leave some percent.
    """
    value, picture, own = run.late("commitment"), _picture(run, run.late), _quantizer(run)
    if value is None or picture <= 0 or run.get("model.wetok.generative_decoder"):  # then it is no loss
        return None
    share = value * run.get("loss.commitment_weight", 0.0) / picture
    found = [(share / 2, f"weighted commitment loss is {share:.2g} x the picture terms")]
    if own.l2_norm or "group_dim" in own:  # a channel is +-1, or a vector has length 1
        channels = own.get("codebook_dim") or own.num_groups * own.group_dim
        error = max(value, 1e-12) * (channels if own.l2_norm else 1)
        found.append((1e-3 / error, f"error {error:.2g} of the codes (0: latents are glued to them)"))
    return combine(found)


def _most_entropy(run: RunEvidence) -> float:
    """The largest `sample_entropy` of the quantizer in nats: that of a uniform assignment."""
    own = _quantizer(run)
    if "group_dim" in own:  # pooled, it is a mean over groups
        return own.group_dim * (own.num_groups if own.codebook_entropy == "per_group" else 1) * math.log(2)
    return math.log(own.codebook_size)


def entropy_imbalance(run: RunEvidence) -> Severity:
    """What the entropy terms can gain in all above 5 x what the picture terms were at the start (their value late says
    little: picture terms vanish, entropies do not); or an assignment within 20 % of a uniform one.
    """
    own, picture = run.late("sample_entropy"), _picture(run, lambda name: median(run.series(name)[:2] or [0.0]))
    if own is None or picture <= 0:
        return None
    most = _most_entropy(run)
    share = most * run.get("loss.entropy_weight", 0.0) / picture
    undecided = f"sample_entropy {own:.2f} of at most {most:.2f} nats, those of latents that prefer no code"
    shares = f"weighted entropy loss can gain {share:.2g} x the picture terms at the start"
    return combine([(share / 5, shares), (0.2 / max(1 - own / most, 1e-9), undecided)])


def precision_flips(run: RunEvidence) -> Severity:
    """Over 10 % other codes in the precision of the training than in fp32, in which evaluation and extraction run."""
    data = run.get("data")
    if run.tokenizer is None or run.get("loop.precision") != "bf16" or "root" not in data:
        return None
    config = DataConfig(**OmegaConf.to_container(data))
    try:
        source = open_source(config, "train")
    except UserError:  # the images are elsewhere; --data says so
        return None
    images = to_float(center_batch(source, config.image_size, range(min(32, len(source))), skip_broken=True))
    exact = run.tokenizer.encode(images).indices
    with autocast(images.device, "bf16"):
        share = (run.tokenizer.encode(images).indices != exact).double().mean().item()
    return share / 0.1, f"{share:.0%} of the codes of {len(images)} images differ between bf16 and fp32"
