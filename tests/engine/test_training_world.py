"""engine/training_world.py: how many threads a training takes, and what it lets cuDNN do."""

import json
import logging
import os

import pytest
import torch

from engine import training_world as module
from engine.loop import LoopConfig
from engine.training_world import choose_threads, training_world
from engine.world import ThreadChoice


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Four cores, and a user who says nothing. The number of threads is put back."""
    threads = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    torch.set_num_threads(4)
    monkeypatch.setattr(module, "usable_cores", lambda: 4)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("busy", [0.0, 0.6, 2.1, 9.0, None])
def test_the_load_does_not_change_the_bits(busy, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "busy_cores", lambda: busy)
    assert choose_threads(tmp_path).count == 4


@pytest.mark.parametrize(("busy", "free"), [(0.6, 3), (2.1, 2), (9.0, 1), (0.4, None), (None, None)])
def test_a_faster_number_of_threads_is_named(busy, free, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "busy_cores", lambda: busy)
    reason = choose_threads(tmp_path).reason
    if free is None:
        assert reason == ""
    else:
        assert reason == f"others keep {busy:.1f} cores busy: a new run with OMP_NUM_THREADS={free} may be faster"


def test_a_quota_bounds_them(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    monkeypatch.setattr(module, "busy_cores", lambda: 1.0)
    assert choose_threads(tmp_path) == ThreadChoice(2)


def start_with(folder, *threads: int | None) -> None:
    """Starts of a run, on CPUs with so many threads or (None) on a GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    devices = [{"type": "cuda"} if count is None else {"type": "cpu", "threads": count} for count in threads]
    (folder / "starts.jsonl").write_text("".join(json.dumps({"device": device}) + "\n" for device in devices))


def test_a_run_goes_on_with_the_threads_that_it_began_with(tmp_path, monkeypatch):
    """Also where it has phases, and however busy the machine is; never with more than there are cores."""
    monkeypatch.setattr(module, "busy_cores", lambda: 3.0)
    start_with(tmp_path / "a", 2, None)
    start_with(tmp_path / "b" / "phase_1", 3)
    start_with(tmp_path / "c", 16)
    start_with(tmp_path / "d", None)
    counts = {name: choose_threads(tmp_path / name).count for name in "abcd"}
    assert counts == {"a": 2, "b": 3, "c": 4, "d": 4}


def test_what_the_user_says_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "busy_cores", lambda: 4.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    start_with(tmp_path, 2)
    assert choose_threads(tmp_path) == ThreadChoice(3)


def test_the_log_says_how_many_and_why(tmp_path, monkeypatch, caplog):
    """And convolutions are measured in trainings that need not be deterministic, nowhere else."""
    monkeypatch.setattr(module, "busy_cores", lambda: 2.2)
    with caplog.at_level(logging.INFO), training_world(LoopConfig(run_dir=str(tmp_path), device="cpu")) as world:
        assert torch.get_num_threads() == 4 and torch.backends.cudnn.benchmark
    assert "4 threads each (others keep 2.2 cores busy: a new run with OMP_NUM_THREADS=2 may" in world.summary
    assert world.summary in caplog.text and not torch.backends.cudnn.benchmark
    with training_world(LoopConfig(run_dir=str(tmp_path), device="cpu", deterministic=True)):
        assert not torch.backends.cudnn.benchmark
