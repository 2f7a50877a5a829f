"""Symptoms of a training: discriminator, divergence, overfitting, curves."""

from __future__ import annotations

import json
import math
from statistics import median

from evaluations.doctor.evidence import CURVES, PICTURE, RunEvidence, Severity, combine
from tokenizer.training.alerts import CLIPPED, STRONG


# ---------------------------------------------------------------------------------------------- the discriminator
def strong_discriminator(run: RunEvidence) -> Severity:
    """Nearly no loss left: its gradient to the generator is the same everywhere (hinge) or gone."""
    loss = run.late("discriminator")
    return None if loss is None else (STRONG / max(loss, 1e-9), f"discriminator loss {loss:.3f} (1 = undecided)")


def dead_discriminator(run: RunEvidence) -> Severity:
    """Logits of real and generated images within 0.01 in every late record: margins are 2 apart."""
    pairs = list(zip(run.series("logits_real"), run.series("logits_generated"), strict=True))
    late = [abs(a - b) for a, b in pairs[len(pairs) // 2 :]]
    if len(late) < 2:
        return None
    return 0.01 / max(*late, 1e-9), f"logits of real and made images differ by {max(late):.2g} at most"


# ---------------------------------------------------------------------------------------------- the curves
def clipped_output(run: RunEvidence) -> Severity:
    """Values outside of [-1, 1] are lost in uint8; some overshoot at edges is normal."""
    shares = run.series("val/clipped_share")
    text = "of the output values of held-out images lie outside [-1.05, 1.05]"
    return (shares[-1] / CLIPPED, f"{shares[-1]:.1%} {text}") if shares else None


def _falling(run: RunEvidence) -> list[tuple[str, list[float]]]:
    """The losses that should fall, with at least 8 records."""
    names = PICTURE if run.is_tokenizer else ("loss",)
    return [(name, run.series(name)) for name in names if len(run.series(name)) >= 8]


def diverged(run: RunEvidence) -> Severity:
    """A loss at twice its own best: noise between batches is well below that once medians of records are taken."""
    found = []
    for name, values in _falling(run):
        width, late = max(2, len(values) // 8), run.late(name)
        best = min(median(values[i : i + width]) for i in range(len(values) - width + 1))
        rise = late / best - 1 if math.isfinite(late) else math.inf
        found.append((rise, f"{name} {late:.4g} late in the run, {best:.4g} at its best"))
    return combine(found)


def not_learning(run: RunEvidence) -> Severity:
    """Every loss within 5 % of where it began (batches differ by 4 %), although a tenth of the run or more is over. A
    run that starts from trained weights may stay there.
    """
    if run.step < 0.1 * run.get("loop.steps", 1) or run.get("init"):
        return None
    ratios = {name: run.late(name) / median(v[:4]) for name, v in _falling(run)}
    text = ", ".join(f"{name} is {ratio:.1%} of its start" for name, ratio in ratios.items())
    return (0.05 / max(1 - min(ratios.values()), 1e-9), text) if ratios else None


def overfitting(run: RunEvidence) -> Severity:
    """A held-out loss 3 % above its best while the training loss went on falling: noise of 500 images is near 1 %."""
    found = []
    for name in ("loss", "reconstruction_l2"):
        held_out, own = run.series(f"val/{name}"), run.series(name)
        if len(held_out) >= 3 and len(own) >= 4 and run.late(name) < median(own[: len(own) // 2]):
            best = next(r["step"] for r in run.val if r.get(f"val/{name}") == min(held_out))
            text = f"val/{name} {held_out[-1]:.4g}, but {min(held_out):.4g} at step {best}; {name} {own[-1]:.4g}"
            found.append(((held_out[-1] / min(held_out) - 1) / 0.03, text))
    return combine(found)


def non_finite(run: RunEvidence) -> Severity:
    """One skipped update in a hundred: a rare one is harmless, more hide an instability."""
    skipped = max(run.series("skipped_steps"), default=0)
    bad = sorted({k for r in run.train for k, v in r.items() if not math.isfinite(v)})
    text = f"{skipped:.0f} of {run.step} updates skipped{'; not finite: ' + ', '.join(bad) if bad else ''}"
    return (math.inf if bad else skipped / (0.01 * max(1, run.step))), text


def off_the_reference(run: RunEvidence) -> Severity:
    """Against the curves of a healthy quick start of the same length: 1.5 x a loss is far outside of its noise."""
    curves, found = json.loads(CURVES.read_text(encoding="utf-8")), []
    for curve in [curves[name] for name, _ in run.recipes if name in curves]:
        for name, values in curve["metrics"].items() if curve["steps"] == run.get("loop.steps") else ():
            normal = dict(zip(curve["at"], values, strict=True))
            common = [(r["step"], r[name], normal[r["step"]]) for r in run.train if r["step"] in normal and name in r]
            late = common[-max(3, len(common) // 4) :]
            if len(late) >= 3:
                step, own, usual = late[-1]
                ratio = median(own / usual for _, own, usual in late)
                text = f"{name} {own:.4g} at step {step}, where a healthy run has {usual:.4g}: {ratio:.2f} x lately"
                found.append(((ratio - 1) / 0.5, text))
    return combine(found)
