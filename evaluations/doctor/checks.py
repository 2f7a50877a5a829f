"""All symptoms by name, each with the check that finds it and the advice against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluations.doctor.advice import (
    ADD_ENTROPY,
    FP32,
    KMEANS,
    LOWER_LR,
    LOWER_PROBE_LRS,
    Advice,
    has_dropout,
    has_key,
    has_other_init,
    quantizer_has,
)
from evaluations.doctor.codebook import (
    codebook_collapse,
    commitment_imbalance,
    dead_codes,
    entropy_imbalance,
    precision_flips,
)
from evaluations.doctor.evidence import RunEvidence
from evaluations.doctor.setup import differs_from_recipe, ranks, unfinished
from evaluations.doctor.severity import Severity
from evaluations.doctor.training import (
    clipped_output,
    dead_discriminator,
    diverged,
    non_finite,
    not_learning,
    off_the_reference,
    overfitting,
    strong_discriminator,
)


@dataclass(frozen=True)
class Check:
    """How severe a symptom is in a run (None if it cannot be judged), and what helps against it."""

    severity: Callable[[RunEvidence], Severity | None]
    advice: Sequence[Advice]

    def remedy(self, run: RunEvidence) -> str:
        """The advice for this run, as one text."""
        return "; ".join(advice.text for advice in self.advice if advice.fits(run))


CHECKS = {
    "codebook collapse": Check(codebook_collapse, [KMEANS, LOWER_LR, ADD_ENTROPY]),
    "dead codes": Check(dead_codes, [KMEANS, ADD_ENTROPY, Advice("use fewer codes")]),
    "commitment imbalance": Check(commitment_imbalance, [Advice("lower loss.commitment_weight (0.25 is usual)")]),
    "entropy imbalance": Check(
        entropy_imbalance,
        [
            Advice("lower loss.entropy_weight"),
            Advice("lower the quantizer's entropy_temperature", fits=quantizer_has("entropy_temperature")),
        ],
    ),
    "precision flips": Check(
        precision_flips,
        [
            Advice("use loop.precision=fp32"),
            Advice("spread the codes with l2_norm=true", fits=quantizer_has("l2_norm")),
            Advice("spread the codes with init=kmeans", fits=has_other_init),
        ],
    ),
    "overpowering discriminator": Check(
        strong_discriminator,
        [
            Advice("start it later (loss.discriminator.start_step)"),
            Advice("make it smaller"),
            Advice("regularize it (loss.discriminator.lecam_weight)"),
        ],
    ),
    "dead discriminator": Check(
        dead_discriminator,
        [Advice("check loss.discriminator.weight and optim.lr, and train it from the start again")],
    ),
    "clipped output": Check(
        clipped_output, [Advice("give pixel losses more weight"), Advice("check the range of the images")]
    ),
    "diverged": Check(
        diverged,
        [
            LOWER_LR,
            LOWER_PROBE_LRS,
            Advice("raise optim.warmup_steps", fits=has_key("optim.warmup_steps")),
            Advice("continue from an older checkpoint"),
        ],
    ),
    "not learning": Check(
        not_learning,
        [
            Advice("raise optim.lr", fits=has_key("optim.lr")),
            Advice("raise probe.base_lrs", fits=has_key("probe.base_lrs")),
            Advice("check the data"),
            Advice("check the loss weights", fits=has_key("loss")),
        ],
    ),
    "overfitting": Check(
        overfitting,
        [
            Advice("use the checkpoint of the best step (loop.keep_every)"),
            Advice("raise the dropout of the model", fits=has_dropout),
            Advice("train on more data"),
        ],
    ),
    "non-finite steps": Check(
        non_finite,
        [
            LOWER_LR,
            LOWER_PROBE_LRS,
            Advice("lower optim.max_grad_norm", fits=has_key("optim.max_grad_norm")),
            FP32,
        ],
    ),
    "off the reference curve": Check(
        off_the_reference, [Advice("compare config.yaml with the recipe"), Advice("check the data")]
    ),
    "learning rate": Check(
        differs_from_recipe("optim.lr"),
        [Advice("use the recipe's learning rate, scaled with the batch (linear or square root)")],
    ),
    "batch size": Check(
        differs_from_recipe("data.global_batch_size"),
        [Advice("use the recipe's: it counts all ranks, and loop.grad_accum fits it into memory")],
    ),
    "number of ranks": Check(
        ranks, [Advice("launch with scripts/launch.sh (torchrun), always with the same number of processes")]
    ),
    "unfinished": Check(unfinished, [Advice("start the same command again"), Advice("read the end of log.txt")]),
}
