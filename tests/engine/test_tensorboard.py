"""engine/tensorboard_log.py: what its event files hold, as TensorBoard reads them."""

import struct
import sys
import time

import pytest
import tiny

import tokenizer.train
from engine.loop import LoopConfig
from engine.messages import UserError
from engine.run_log import Run, read_metrics
from engine.tracker import Tracker
from engine.trackers import TRACKERS


def events_of(folder):
    """The events of all files by age; those of steps that a later start repeats are purged, as TensorBoard does."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    events = []
    for path in sorted((folder / "tensorboard").glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        content = path.read_bytes()
        while len(content) >= 12:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                events = [earlier for earlier in events if earlier.step < event.step]
            events.append(event)
    return events


def scalars_of(folder, tag):
    """[(step, value), ...] of one metric."""
    values = [(event.step, value) for event in events_of(folder) for value in event.summary.value]
    return [(step, round(value.simple_value, 5)) for step, value in values if value.tag == tag]


def open_run(folder, world) -> Run:
    loop = LoopConfig(steps=8, trackers=["tensorboard"])
    return Run(folder, loop, world, loop.tracker_sections())


def test_a_resume_neither_repeats_nor_loses_records(tmp_path, world):
    """Killed at step 6 without an end; the newest checkpoint is of step 4."""
    killed = open_run(tmp_path, world)
    killed.begin(0)
    for step in (2, 4, 6):
        killed.log_metrics(step, {"loss": 1 / step})
    deadline = time.monotonic() + 20
    while len(scalars_of(tmp_path, "loss")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed._lock.release()  # the process is gone, its file was never closed
    with open_run(tmp_path, world) as run:
        run.begin(4)
        for step in (6, 8):
            run.log_metrics(step, {"loss": 3 / step})
    assert scalars_of(tmp_path, "loss") == [(2, 0.5), (4, 0.25), (6, 0.5), (8, 0.375)]
    killed._trackers["tensorboard"].close(failed=True)  # its thread


def test_records_from_before_it_was_switched_on_are_there(tmp_path, world):
    with Run(tmp_path, LoopConfig(), world) as run:
        run.log_metrics(1, {"loss": 0.5})
        run.log_metrics(3, {"loss": 0.25})
    with open_run(tmp_path, world) as run:
        run.begin(1)
        run.log_metrics(3, {"loss": 0.125})
    assert scalars_of(tmp_path, "loss") == [(1, 0.5), (3, 0.125)]


def test_a_training_shows_its_metrics_pictures_and_config(tmp_path, image_folder, world):
    """As they are in metrics.jsonl; and its log ends with where everything lies."""
    overrides = ["loop.trackers=[tensorboard]", "loop.steps=2"]
    tokenizer.train.train(tiny.tokenizer_config(tmp_path / "run", image_folder, *overrides), world)
    records = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert scalars_of(tmp_path / "run", "loss") == [(r["step"], pytest.approx(r["loss"], abs=1e-5)) for r in records]
    tags = {value.tag for event in events_of(tmp_path / "run") for value in event.summary.value}
    assert {"val/psnr", "samples/val", "config/text_summary"} <= tags

    end = (tmp_path / "run/log.txt").read_text().partition("finished after 2 steps")[2]
    for place in ("checkpoints/step_00000002", "metrics.jsonl", "samples (1 picture)", "python -m evaluations.report"):
        assert place in end
    assert f"tensorboard --logdir {tmp_path / 'run' / 'tensorboard'}" in end


def test_a_plug_in_adds_a_tracker(tmp_path, world, monkeypatch):
    """By its name in `loop.trackers`: it gets what the others get, and its place stands at the end of the log."""

    class Lines(Tracker):
        def __init__(self, run_dir, section, config):
            self.lines = []

        def begin(self, step, records):
            self.lines.append(("begin", step))

        def log(self, metrics, step):
            self.lines.append((step, dict(metrics)))

        def where(self):
            return f"{len(self.lines)} lines"

    with pytest.raises(UserError, match="must be a list of some of: tensorboard, wandb"):
        LoopConfig(trackers=["lines"])
    monkeypatch.setitem(TRACKERS, "lines", Lines)
    loop = LoopConfig(trackers=["lines"])
    with Run(tmp_path, loop, world, loop.tracker_sections()) as run:
        run.begin(0)
        run.log_metrics(1, {"loss": 0.5})
        run.finish(1)
        assert run._trackers["lines"].lines == [("begin", 0), (1, {"loss": 0.5})]
    assert "lines       2 lines" in (tmp_path / "log.txt").read_text()


def test_without_the_package_its_group_is_named(monkeypatch, tmp_path, world):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"needs tensorboardX; run: .* --extras quickstart,tensorboard"):
        open_run(tmp_path, world)
