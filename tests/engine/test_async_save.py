"""Checkpoints that a thread writes while the training goes on keep every promise of those that are waited for."""

import threading

import checkpoints
import pytest
import torch
from checkpoints import same, steps_of

from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, file_sha256, find_damage
from engine.checkpoint.store import CheckpointStore


@pytest.fixture
def thing(tmp_path, world):
    return checkpoints.Thing(tmp_path / "run", world, asynchronous=True, keep_last=9)


def later(thing, step: int) -> None:
    """Trains a step and saves it without waiting."""
    thing.train(range(step - 1, step))
    thing.store.save(step, thing.parts, thing.updater.weights, wait=False)


def test_a_snapshot_is_of_its_step(thing, tmp_path, world, monkeypatch):
    """The save of step 1 is held up until the training is two steps further: it still has the bits of step 1."""
    go, real = threading.Event(), CheckpointStore._write
    monkeypatch.setattr(CheckpointStore, "_write", lambda self, *args: (go.wait(60), real(self, *args)))
    later(thing, 1)
    saved = thing.state()
    thing.train(range(1, 3))
    assert not same(thing.state(), saved)
    assert checkpoint_folders(tmp_path / "run") == [], "nothing is a checkpoint before its manifest is there"
    go.set()
    thing.store.wait()
    assert steps_of(tmp_path / "run") == [1]
    other = checkpoints.Thing(tmp_path / "run", world, seed=5)
    assert other.load() == 1 and same(other.state(), saved)


def test_files_are_those_of_a_save_that_is_waited_for(tmp_path, world):
    """Weights and config byte for byte, the training state bit for bit, after every step."""
    things = [checkpoints.Thing(tmp_path / str(a), world, asynchronous=a, keep_last=9) for a in (True, False)]
    for step in (1, 2, 3):
        for thing in things:
            later(thing, step)
    things[0].store.wait()
    for one, two in zip(*(checkpoint_folders(tmp_path / str(a)) for a in (True, False)), strict=True):
        assert find_damage(one) is None and one.name == two.name
        for name in ("model.safetensors", "ema.safetensors", "config.yaml"):
            assert file_sha256(one / name) == file_sha256(two / name)
    restored = [checkpoints.Thing(tmp_path / str(a), world, seed=5) for a in (True, False)]
    assert [r.load() for r in restored] == [3, 3] and same(*(r.state() for r in restored))


def test_a_save_waits_for_the_one_before(thing, monkeypatch):
    """Never two at a time, and each in its turn."""
    running, seen, real = [], [], CheckpointStore._write

    def write(self, step, *args):
        running.append(step)
        assert len(running) == 1
        real(self, step, *args)
        seen.append(running.pop())

    monkeypatch.setattr(CheckpointStore, "_write", write)
    for step in (1, 2, 3):
        later(thing, step)
        assert seen == list(range(1, step))[: len(seen)] and len(seen) >= step - 1
    thing.save(4)
    assert seen == [1, 2, 3, 4]


def test_a_failure_in_the_thread_is_raised_and_costs_no_older_checkpoint(thing, tmp_path, monkeypatch):
    """The disk is full in the second save: the third one (or the end of the run) says so, and nothing torn stays."""
    later(thing, 1)
    thing.store.wait()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch.distributed.checkpoint, "save", full)
        later(thing, 2)
        with pytest.raises(CheckpointError, match=r"step_00000002 could not be written: .*No space left"):
            thing.store.save(3, thing.parts, thing.updater.weights, wait=False)
    assert checkpoints.entries(tmp_path / "run") == ["step_00000001"]
    thing.save(3)
    assert steps_of(tmp_path / "run") == [1, 3]
