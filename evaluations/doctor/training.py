"""Symptoms of a training, read from its records."""

from __future__ import annotations

import math
from statistics import median

from evaluations.doctor.evidence import RunEvidence, reference_curves
from evaluations.doctor.severity import Severity, worst
from tokenizer.losses.terms import PICTURE_WEIGHTS
from tokenizer.training.alerts import MAX_CLIPPED_FRACTION, SATURATED_LOSS

TRAINING_NAMES = {"loss_bound": "loss"}  # of a held-out loss, where the one of training has another name
MIN_DIVISOR = 1e-9  # losses, gaps and falls below it count as this


# ------------------------------------------------------------------------------------------------ the discriminator
def strong_discriminator(run: RunEvidence) -> Severity | None:
    """Almost no loss left: its gradient to the generator is the same everywhere (hinge) or gone."""
    loss = run.late("discriminator")
    if loss is None:
        return None
    return Severity(SATURATED_LOSS / max(loss, MIN_DIVISOR), f"discriminator loss {loss:.3f} (1 = undecided)")


def dead_discriminator(run: RunEvidence) -> Severity | None:
    """Logits of real and generated images within 0.01 in every late record.

    The margins of the hinge loss are 2 apart.
    """
    logits = list(zip(run.series("logits_real"), run.series("logits_generated"), strict=True))
    gaps = [abs(real - generated) for real, generated in logits[len(logits) // 2 :]]
    if len(gaps) < 2:
        return None
    largest = max(gaps)
    evidence = f"logits of real and generated images differ by {largest:.2g} at most"
    return Severity(0.01 / max(largest, MIN_DIVISOR), evidence)


# ------------------------------------------------------------------------------------------------ the output
def clipped_output(run: RunEvidence) -> Severity | None:
    """Values outside [-1, 1] are lost in uint8; some overshoot at edges is normal."""
    fractions = run.series("val/clipped_share")
    if not fractions:
        return None
    evidence = f"{fractions[-1]:.1%} of the output values of held-out images lie outside [-1.05, 1.05]"
    return Severity(fractions[-1] / MAX_CLIPPED_FRACTION, evidence)


# ------------------------------------------------------------------------------------------------ the losses
def _falling_losses(run: RunEvidence) -> dict[str, list[float]]:
    """The losses that should fall, with at least 8 records each."""
    names = PICTURE_WEIGHTS if run.is_tokenizer else ["loss"]
    series = {name: run.series(name) for name in names}
    return {name: values for name, values in series.items() if len(values) >= 8}


def diverged(run: RunEvidence) -> Severity | None:
    """A loss at twice its own best.

    Noise between batches is well below that once medians of records are taken.
    """
    severities = []
    for name, values in _falling_losses(run).items():
        late = run.late(name)
        width = max(2, len(values) // 8)
        best = min(median(values[i : i + width]) for i in range(len(values) - width + 1))
        rise = late / best - 1 if math.isfinite(late) else math.inf
        severities.append(Severity(rise, f"{name} {late:.4g} late in the run, {best:.4g} at its best"))
    return worst(severities)


def not_learning(run: RunEvidence) -> Severity | None:
    """Every loss within 5 % of where it began, although a tenth of the run or more is over.

    Batches differ by 4 %. A run that starts from trained weights may stay there.
    """
    if run.is_early or run.get("init"):
        return None
    ratios = {name: run.late(name) / median(values[:4]) for name, values in _falling_losses(run).items()}
    if not ratios:
        return None
    evidence = ", ".join(f"{name} is {ratio:.1%} of its start" for name, ratio in ratios.items())
    return Severity(0.05 / max(1 - min(ratios.values()), MIN_DIVISOR), evidence)


def overfitting(run: RunEvidence) -> Severity | None:
    """A held-out loss 3 % above its best while the training loss went on falling.

    The noise of 500 held-out images is near 1 %.
    """
    severities = []
    for name in ("loss", "loss_bound", "reconstruction_l2"):
        trained_name = TRAINING_NAMES.get(name, name)
        held_out = run.series(f"val/{name}")
        training = run.series(trained_name)
        if len(held_out) < 3 or len(training) < 4:
            continue
        first_half = median(training[: len(training) // 2])
        if not run.late(trained_name) < first_half:
            continue

        best = min(held_out)
        last = held_out[-1]
        best_step = next(record["step"] for record in run.val if record.get(f"val/{name}") == best)
        evidence = f"val/{name} {last:.4g}, but {best:.4g} at step {best_step}; {trained_name} {training[-1]:.4g}"
        severities.append(Severity((last / best - 1) / 0.03, evidence))
    return worst(severities)


def non_finite(run: RunEvidence) -> Severity | None:
    """One skipped step in a hundred: a rare one is harmless, more hide an instability."""
    skipped = max(run.series("skipped_steps"), default=0)
    evidence = f"{skipped:.0f} of {run.step} steps skipped"
    not_finite = {name for record in run.train for name, value in record.items() if not math.isfinite(value)}
    if not_finite:
        return Severity(math.inf, f"{evidence}; not finite: {', '.join(sorted(not_finite))}")
    return Severity(skipped / (0.01 * max(1, run.step)), evidence)


# ------------------------------------------------------------------------------------------------ the reference
def off_the_reference(run: RunEvidence) -> Severity | None:
    """A loss at 1.5 x that of a healthy quick start of the same length.

    That is far outside its noise.
    """
    curves = reference_curves()
    severities = []
    for recipe in run.recipes:
        curve = curves.get(recipe.title)
        if curve is None or curve["steps"] != run.get("loop.steps"):
            continue
        for name, values in curve["metrics"].items():
            severity = _distance(run, name, dict(zip(curve["at"], values, strict=True)))
            if severity is not None:
                severities.append(severity)
    return worst(severities)


def _distance(run: RunEvidence, name: str, healthy: dict[int, float]) -> Severity | None:
    """The median ratio of late values of a loss to those of a healthy run {step: value}."""
    common = [record for record in run.train if record["step"] in healthy and name in record]
    late = common[-max(3, len(common) // 4) :]
    if len(late) < 3:
        return None

    ratio = median(record[name] / healthy[record["step"]] for record in late)
    step = late[-1]["step"]
    value = late[-1][name]
    evidence = f"{name} {value:.4g} at step {step}, where a healthy run has {healthy[step]:.4g}: {ratio:.2f} x lately"
    return Severity((ratio - 1) / 0.5, evidence)
