"""engine/loop.py with a task that only counts: what happens when, and what a config may say."""

from dataclasses import dataclass, field
from itertools import count

import pytest
import torch

from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.checkpoint.store import CheckpointStore
from engine.data.wait import DataWait
from engine.loop import LoopConfig, fit
from engine.messages import ConfigError
from engine.run_log import Run, read_metrics


@dataclass(kw_only=True, slots=True)
class Config:
    """A root config."""

    model: str = "counter"
    loop: LoopConfig = field(default_factory=LoopConfig)


class Counter:
    """A task whose state is the sum of all batches that it has seen."""

    def __init__(self) -> None:
        self.total, self.steps, self.evaluated, self.inspected = torch.zeros(1), [], [], []

    def train_step(self, micro_batches, step):
        self.steps.append(step)
        self.total = self.total + sum(batch["x"].sum() for batch in micro_batches)
        return {"loss": self.total[0] * 1.0, "draw": torch.rand(())}

    def inspect(self):
        self.inspected.append(self.steps[-1] + 1)
        return {"inspected": self.total[0] * 2.0}

    def evaluate(self, step):
        self.evaluated.append(step)
        torch.rand(7)  # validation may draw random numbers
        return {"val/total": self.total.item()}

    def parts(self):
        return {"counter": self}

    def weights(self):
        return {"model": {"total": self.total}}

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state["total"]


def stream(start):
    """Micro-batch number i of the run holds the value i."""
    return ({"x": torch.tensor([float(i)])} for i in count(start))


def train(folder, world, **loop) -> Counter:
    config = Config(loop=LoopConfig(run_dir=str(folder), device="cpu", **loop))
    task, run = Counter(), Run(folder, config, world)
    with run:
        fit(task, stream, config.loop, run, world, CheckpointStore(folder, world, config, keep_last=99))
    return task


def test_logs_evaluations_and_saves_happen_when_asked_and_at_the_end(tmp_path, world):
    """Every n-th step and the last one; a step is counted from 1 in the record."""
    task = train(tmp_path, world, steps=10, log_every=4, eval_every=3, save_every=5)
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records if "loss" in r] == [4, 8, 10]
    assert task.evaluated == [3, 6, 9, 10] == [r["step"] for r in records if "val/total" in r]
    assert [read_manifest(f)["step"] for f in checkpoint_folders(tmp_path)] == [5, 10]
    assert task.steps == list(range(10)) and task.total.item() == 45
    assert all(r["steps_per_second"] > 0 for r in records if "loss" in r)


def test_the_share_of_time_that_waits_for_data_is_recorded(tmp_path, world):
    """Every record of the training has it; validation, which reads other data, counts as nothing."""
    train(tmp_path, world, steps=4, log_every=2, eval_every=2)
    records = [r for r in read_metrics(tmp_path) if "loss" in r]
    assert len(records) == 2 and all(0 < r["data_wait"] < 1 for r in records)


def test_waiting_is_a_share_of_the_time_since_the_last_record(monkeypatch):
    """By a clock that is set by hand: 3 of 4 seconds; then 1 of 10; then nothing, after a restart."""
    clock = [100.0]
    monkeypatch.setattr("engine.data.wait.time.perf_counter", lambda: clock[0])
    wait = DataWait()

    def pass_time(waited: float, worked: float) -> None:
        with wait.waiting():
            clock[0] += waited
        clock[0] += worked

    pass_time(1, 0.5)
    pass_time(2, 0.5)
    assert wait.measure() == 3 / 4
    pass_time(1, 9)
    assert wait.measure() == 1 / 10
    pass_time(7, 0)
    wait.restart()
    pass_time(0, 2)
    assert wait.measure() == 0


def test_the_state_is_looked_at_for_records_and_in_between(tmp_path, world, monkeypatch):
    """Its scalars are part of the record; without a record for long, it is looked at all the same."""
    task = train(tmp_path / "a", world, steps=10, log_every=4)
    assert task.inspected == [4, 8, 10]
    assert [r["inspected"] == 2 * r["loss"] for r in read_metrics(tmp_path / "a") if "loss" in r] == [True] * 3
    monkeypatch.setattr("engine.loop.INSPECT_STEPS", 3)
    assert train(tmp_path / "b", world, steps=13, log_every=8).inspected == [3, 6, 8, 11, 13]


def test_no_evaluation_but_at_the_end(tmp_path, world):
    assert train(tmp_path, world, steps=4, eval_every=0).evaluated == [4]


def test_micro_batches_reach_the_task_together(tmp_path, world):
    """One update per step, with all of its micro-batches in order."""
    task = train(tmp_path, world, steps=3, grad_accum=4)
    assert task.steps == [0, 1, 2] and task.total.item() == sum(range(12))


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path, world):
    """`loop.steps` may be raised later: the missing steps are trained, with their own batches and random numbers."""
    train(tmp_path / "a", world, steps=3, log_every=1)
    rest = train(tmp_path / "a", world, steps=6, log_every=1)
    assert rest.steps == [3, 4, 5] and rest.total.item() == 15
    train(tmp_path / "b", world, steps=6, log_every=1, eval_every=2)
    draws = [[r["draw"] for r in read_metrics(tmp_path / name) if "draw" in r] for name in "ab"]
    assert draws[0] == draws[1] and len(set(draws[0])) == 6
    assert train(tmp_path / "a", world, steps=6).steps == []


def test_a_run_that_ends_early_is_the_beginning_of_the_whole_one(tmp_path, world):
    """`loop.stop_at` ends it with a record, a validation and a checkpoint; a later one, or none, goes on from there."""
    options = {"steps": 6, "log_every": 1, "eval_every": 5}
    task = train(tmp_path / "a", world, stop_at=2, **options)
    assert task.steps == [0, 1] and task.evaluated == [2]
    assert [read_manifest(f)["step"] for f in checkpoint_folders(tmp_path / "a")] == [2]
    assert train(tmp_path / "a", world, stop_at=2, **options).steps == []
    assert train(tmp_path / "a", world, stop_at=5, **options).steps == [2, 3, 4]
    assert train(tmp_path / "a", world, **options).steps == [5]
    log = (tmp_path / "a" / "log.txt").read_text()
    for line in (
        "ends after step 2 (loop.stop_at), with the schedules of 6\n",
        "ends after step 2 (loop.stop_at), with the schedules of 6; nothing is left to do",
        "stopped after step 5 of 6 (loop.stop_at); the same command with a larger loop.stop_at, or 0, continues\n",
        "finished after 6 steps\n",
    ):
        assert line in log
    assert log.count("finished after") == 1 and log.count("stopped after step 2 of 6") == 2

    train(tmp_path / "b", world, **options)
    draws = [[r["draw"] for r in read_metrics(tmp_path / name) if "draw" in r] for name in "ab"]
    assert draws[0] == draws[1] and len(set(draws[0])) == 6
    last = [checkpoint_folders(tmp_path / name)[-1] / "model.safetensors" for name in "ab"]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_an_error_in_a_step_leaves_the_run_as_it_was_saved(tmp_path, world, monkeypatch):
    """The checkpoint before the crash stays good and is where the next call goes on."""
    real = Counter.train_step

    def crash(self, micro_batches, step):
        if step == 4:
            raise RuntimeError("a bug")
        return real(self, micro_batches, step)

    with monkeypatch.context() as patched:
        patched.setattr(Counter, "train_step", crash)
        with pytest.raises(RuntimeError, match="a bug"):
            train(tmp_path, world, steps=6, save_every=2)
    log = (tmp_path / "log.txt").read_text()
    assert "process 0: Traceback" in log and "in crash" in log and log.endswith("RuntimeError: a bug\n")
    rest = train(tmp_path, world, steps=6, save_every=2)
    assert rest.steps == [4, 5] and rest.total.item() == 15


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "loop.steps=0 must be 1 or more"),
        ({"stop_at": -1}, "loop.stop_at=-1 must be 0 or more"),
        ({"grad_accum": 0}, "loop.grad_accum=0 must be 1 or more"),
        ({"log_every": 0}, "loop.log_every=0 must be 1 or more"),
        ({"save_every": 0}, "loop.save_every=0 must be 1 or more"),
        ({"keep_last": 0}, "loop.keep_last=0 must be 1 or more"),
        ({"seed": -1}, "loop.seed=-1 must be in 0..18446744073709551615 (64 bits)"),
        ({"precision": "fp16"}, "loop.precision='fp16' must be one of: bf16, fp32"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(ConfigError) as caught:
        LoopConfig(**setting)
    assert f"loop.{caught.value}" == message
