"""Symptoms of a training that is slower than its network: it waits for data, or for its own validation."""

from __future__ import annotations

from evaluations.doctor.evidence import RunEvidence
from evaluations.doctor.severity import Severity

MIN_SECONDS = 60  # of recorded training, below which the speed does not matter
MAX_DATA_WAIT = 0.2  # of the time
MAX_VALIDATION = 0.2  # of the time of training and validation


def slow_loader(run: RunEvidence) -> Severity | None:
    """A fifth of the time is spent waiting for images or codes, which a loader that keeps up never causes.

    A short run is left in peace: its loader has hardly started.
    """
    wait = run.late("data_wait")
    if wait is None or _training_seconds(run) < MIN_SECONDS:
        return None
    workers = run.get("data.num_workers", 0)
    return Severity(wait / MAX_DATA_WAIT, f"{wait:.1%} of the time waits for data; data.num_workers={workers}")


def slow_validation(run: RunEvidence) -> Severity | None:
    """A fifth of the time is spent on held-out images, more than a curve of a few points is worth.

    A short run is left in peace: its validation at the end weighs as much as all its steps.
    """
    seconds = run.series("val/seconds")
    training = _training_seconds(run)
    if not seconds or training < MIN_SECONDS:
        return None
    total = sum(seconds)
    share = total / (training + total)
    evidence = f"{len(seconds)} validations took {total:.0f} s, training {training:.0f} s: {share:.1%} of the time"
    return Severity(share / MAX_VALIDATION, evidence)


def _training_seconds(run: RunEvidence) -> float:
    """The time of all recorded steps, by their rates."""
    total, before = 0.0, 0.0
    for record in run.train:
        total += (record["step"] - before) / max(record["steps_per_second"], 1e-9)
        before = record["step"]
    return total
