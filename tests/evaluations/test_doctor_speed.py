"""The doctor names a loader and a validation that are too slow, and leaves short trainings in peace."""

import time

import pytest
import tiny

import tokenizer.train
from engine.data.folders import FolderSource
from evaluations.doctor import speed
from evaluations.doctor.__main__ import examine
from evaluations.doctor.evidence import RunEvidence

STEPS = ["loop.steps=12", "loop.log_every=2", "ema_decay=0"]


def severities(run):
    return {name: s for name, s in examine(RunEvidence(run)).items() if name.startswith("slow ")}


@pytest.fixture
def train(tmp_path, image_folder, world, monkeypatch):
    """`train(*changes)` is the folder of a tiny run, which counts as long enough to be judged."""
    monkeypatch.setattr(speed, "MIN_SECONDS", 0)

    def run(*changes):
        tokenizer.train.train(tiny.tokenizer_config(tmp_path / "run", image_folder, *STEPS, *changes), world)
        return tmp_path / "run"

    return run


def test_a_slow_loader_is_named(train, monkeypatch):
    """Images that take 20 ms each, for a network of a few ms per step."""
    read = FolderSource.image

    def slowly(*arguments):
        time.sleep(0.02)
        return read(*arguments)

    monkeypatch.setattr(FolderSource, "image", slowly)
    run = train()
    found = severities(run)["slow loader"]
    assert found.ratio > 1.5 and "data.num_workers=0" in found.evidence
    assert "raise data.num_workers" in speed_remedy("slow loader", run)


def test_a_slow_validation_is_named(train):
    """After every step, on more images than a step has."""
    run = train("loop.eval_every=1", "validation={num_images: 6, batch_size: 1}")
    found = severities(run)["slow validation"]
    assert found.ratio > 1.5 and "12 validations took" in found.evidence
    assert speed_remedy("slow validation", run) == "raise loop.eval_every; lower validation.num_images"


def test_a_short_training_is_left_in_peace(train, monkeypatch):
    run = train("loop.eval_every=1")
    assert set(severities(run)) == {"slow loader", "slow validation"}
    monkeypatch.setattr(speed, "MIN_SECONDS", 60)
    assert severities(run) == {}


def speed_remedy(name, run) -> str:
    from evaluations.doctor.checks import CHECKS

    return CHECKS[name].remedy(RunEvidence(run))
