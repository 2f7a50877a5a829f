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
    RESTART,
    Advice,
    has_dropout,
    has_key,
    has_other_init,
    has_text,
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
from evaluations.doctor.speed import slow_loader, slow_validation
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
    needs: str  # what a run must have, for the symptom to be judged

    def remedy(self, run: RunEvidence) -> str:
        """The advice for this run, as one text."""
        return "; ".join(advice.text for advice in self.advice if advice.fits(run))


SAME_RECIPE = "a recipe with the same model and this key; --recipe names one"

CHECKS = {
    "codebook collapse": Check(
        codebook_collapse,
        [KMEANS, RESTART, LOWER_LR, ADD_ENTROPY],
        needs="a tokenizer's checkpoint with at least as many recent tokens as codes",
    ),
    "dead codes": Check(
        dead_codes,
        [KMEANS, RESTART, ADD_ENTROPY, Advice("use fewer codes")],
        needs="a tokenizer's checkpoint after a tenth of its run, with four recent tokens per code",
    ),
    "commitment imbalance": Check(
        commitment_imbalance,
        [Advice("lower loss.commitment_weight (0.25 is usual)")],
        needs="a tokenizer whose quantizer is trained with a commitment loss, and four records of it",
    ),
    "entropy imbalance": Check(
        entropy_imbalance,
        [
            Advice("lower loss.entropy_weight"),
            Advice("lower the quantizer's entropy_temperature", fits=quantizer_has("entropy_temperature")),
        ],
        needs="a tokenizer with an entropy loss, and four records of it",
    ),
    "precision flips": Check(
        precision_flips,
        [
            Advice("use loop.precision=fp32"),
            Advice("spread the codes with l2_norm=true", fits=quantizer_has("l2_norm")),
            Advice("spread the codes with init=kmeans", fits=has_other_init),
        ],
        needs="a tokenizer trained in bf16 whose images are there",
    ),
    "overpowering discriminator": Check(
        strong_discriminator,
        [
            Advice("start it later (loss.discriminator.start_step)"),
            Advice("make it smaller"),
            Advice("regularize it (loss.discriminator.lecam_weight)"),
        ],
        needs="four records of a discriminator's loss",
    ),
    "dead discriminator": Check(
        dead_discriminator,
        [Advice("check loss.discriminator.weight and optim.lr, and train it from the start again")],
        needs="four records of a discriminator's logits",
    ),
    "clipped output": Check(
        clipped_output,
        [Advice("give pixel losses more weight"), Advice("check the range of the images")],
        needs="validation of a tokenizer's images",
    ),
    "diverged": Check(
        diverged,
        [
            LOWER_LR,
            LOWER_PROBE_LRS,
            Advice("raise optim.warmup_steps", fits=has_key("optim.warmup_steps")),
            Advice("continue from an older checkpoint"),
        ],
        needs="eight records of a loss",
    ),
    "not learning": Check(
        not_learning,
        [
            Advice("raise optim.lr", fits=has_key("optim.lr")),
            Advice("raise probe.base_lrs", fits=has_key("probe.base_lrs")),
            Advice("check the data"),
            Advice("check the loss weights", fits=has_key("loss")),
        ],
        needs="eight records of a loss after a tenth of a run that starts from random weights",
    ),
    "overfitting": Check(
        overfitting,
        [
            Advice("use the checkpoint of the best step (loop.keep_every)"),
            Advice("raise the dropout of the model", fits=has_dropout),
            Advice("train on more data"),
        ],
        needs="three validations with a loss, four records of the same loss in training, and that it fell",
    ),
    "non-finite steps": Check(
        non_finite,
        [
            LOWER_LR,
            LOWER_PROBE_LRS,
            Advice("lower optim.max_grad_norm", fits=has_key("optim.max_grad_norm")),
            FP32,
        ],
        needs="records of a training",
    ),
    "off the reference curve": Check(
        off_the_reference,
        [Advice("compare config.yaml with the recipe"), Advice("check the data")],
        needs="a quick start of the same length as the reference, with three common records",
    ),
    "learning rate": Check(
        differs_from_recipe("optim.lr"),
        [Advice("use the recipe's learning rate, scaled with the batch (linear or square root)")],
        needs=SAME_RECIPE,
    ),
    "batch size": Check(
        differs_from_recipe("data.global_batch_size"),
        [Advice("use the recipe's: it counts all ranks, and loop.grad_accum fits it into memory")],
        needs=SAME_RECIPE,
    ),
    "slow loader": Check(
        slow_loader,
        [
            Advice("raise data.num_workers, up to the cores of a process", fits=has_key("data.num_workers")),
            Advice("keep images in tar files (data.name=shards)", fits=has_text("data.root")),
            Advice("keep the data on a faster disk"),
        ],
        needs="four records of a training of a minute or more, with the meter data_wait",
    ),
    "slow validation": Check(
        slow_validation,
        [
            Advice("raise loop.eval_every"),
            Advice("lower validation.num_images", fits=has_key("validation.num_images")),
        ],
        needs="validations with the meter val/seconds, in a training of a minute or more",
    ),
    "number of ranks": Check(
        ranks,
        [Advice("launch with scripts/launch.sh (torchrun), always with the same number of processes")],
        needs="a start whose processes do not fit together; starts.jsonl shows none",
    ),
    "unfinished": Check(
        unfinished,
        [Advice("start the same command again"), Advice("read the end of log.txt")],
        needs="a run that ended early and that no process continues; this one is finished or running",
    ),
}
