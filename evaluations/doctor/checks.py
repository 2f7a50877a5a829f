"""All symptoms by name."""

from __future__ import annotations

from evaluations.doctor.codebook import (
    codebook_collapse,
    commitment_imbalance,
    dead_codes,
    entropy_imbalance,
    precision_flips,
)
from evaluations.doctor.evidence import Check
from evaluations.doctor.setup import _mismatch, ranks, unfinished
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

# name: (check, remedy)
CHECKS: dict[str, tuple[Check, str]] = {
    "codebook collapse": (
        codebook_collapse,
        "warm up the quantizer with init=kmeans, lower optim.lr, add entropy loss",
    ),
    "dead codes": (dead_codes, "warm up the quantizer with init=kmeans, add entropy loss, or use fewer codes"),
    "commitment imbalance": (commitment_imbalance, "lower loss.commitment_weight (0.25 is usual)"),
    "entropy imbalance": (entropy_imbalance, "lower loss.entropy_weight, or the quantizer's entropy_temperature"),
    "precision flips": (precision_flips, "use loop.precision=fp32, or spread the codes (l2_norm=true, init=kmeans)"),
    "overpowering discriminator": (strong_discriminator, "start it later, make it smaller, or regularize it (LeCam)"),
    "dead discriminator": (dead_discriminator, "check loss.discriminator.weight and optim.lr; begin anew with it"),
    "clipped output": (clipped_output, "give pixel losses more weight; check the range of the images"),
    "diverged": (diverged, "lower optim.lr or raise optim.warmup_steps; go on from an older checkpoint"),
    "not learning": (not_learning, "raise optim.lr; check the data and the loss weights"),
    "overfitting": (overfitting, "use the checkpoint of the best step (loop.keep_every), more dropout, or more data"),
    "non-finite steps": (non_finite, "lower optim.lr or optim.max_grad_norm, or use loop.precision=fp32"),
    "off the reference curve": (off_the_reference, "compare config.yaml with the recipe, then the data"),
    "learning rate": (_mismatch("optim.lr"), "use the recipe's rate, scaled with the batch (linear or square root)"),
    "batch size": (_mismatch("data.global_batch_size"), "it counts all ranks; loop.grad_accum fits it into memory"),
    "number of ranks": (ranks, "launch with scripts/launch.sh (torchrun), always with the same number of processes"),
    "unfinished": (unfinished, "start the same command again; read the end of log.txt"),
}
