"""engine/run_log.py: the record of a run survives kills and resumes."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from engine import installation
from engine.config import load_config
from engine.loop import LoopConfig
from engine.messages import UserError, logger
from engine.run_log import Run, read_lines, read_metrics
from engine.run_record import start_record
from engine.world import World


def open_run(folder, world) -> Run:
    return Run(folder, LoopConfig(steps=7), world)


def without_time(records):
    return [{k: v for k, v in r.items() if k != "time"} for r in records]


def test_a_run_folder_holds_its_config_and_log(tmp_path, world):
    """config.yaml loads to the same config; log.txt has what was said, and nothing after the end."""
    run = open_run(tmp_path / "a" / "run", world)
    run.write_config()
    run.log("hello")
    run.save_grid("step_1", torch.zeros(2, 3, 4, 4), 2)
    run.close()
    logger.info("after the end")
    assert load_config(LoopConfig, [run.dir / "config.yaml"]) == LoopConfig(steps=7)
    assert "hello" in (run.dir / "log.txt").read_text() and "after" not in (run.dir / "log.txt").read_text()
    assert (run.dir / "git_sha.txt").read_text().strip()
    assert (run.dir / "samples" / "step_1.png").is_file()


def test_metrics_are_numbers_by_step(tmp_path, world, caplog):
    """Six significant digits in the record; the console shows what is asked for."""
    run = open_run(tmp_path, world)
    with caplog.at_level(logging.INFO):
        run.log_metrics(1, {"loss": 1 / 3, "lr": 1e-4}, show=("lr", "absent"))
        run.log_metrics(2, {"loss": 2.0})
        run.log_metrics(3, {})
    run.close()
    assert without_time(read_metrics(tmp_path)) == [{"step": 1, "loss": 0.333333, "lr": 1e-4}, {"step": 2, "loss": 2.0}]
    assert [r.getMessage() for r in caplog.records] == ["step 1: lr 0.0001", "step 2: loss 2"]
    assert all("time" in json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_repeated_step_counts_once_with_its_later_record(tmp_path, world):
    """A resume from step 2 repeats steps 3 and 4; validation at the same step is another record."""
    first = open_run(tmp_path, world)
    for step in (1, 2, 3, 4):
        first.log_metrics(step, {"loss": float(step)})
    first.log_metrics(4, {"val/psnr": 20.0})
    first.close()
    second = open_run(tmp_path, world)
    for step in (3, 4, 5):
        second.log_metrics(step, {"loss": 10.0 * step})
    second.close()
    records = without_time(read_metrics(tmp_path))
    assert [(r["step"], r.get("loss")) for r in records if "loss" in r] == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]
    assert {"step": 4, "val/psnr": 20.0} in records
    assert [r["step"] for r in records] == sorted(r["step"] for r in records)


def test_a_torn_last_line_costs_that_line_only(tmp_path, world):
    """Regression: the first record after a resume was glued to the line that a killed process had left, and lost."""
    run = open_run(tmp_path, world)
    run.log_metrics(1, {"loss": 1.0})
    run.log_metrics(2, {"loss": 2.0})
    run.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    again = open_run(tmp_path, world)
    again.log_metrics(2, {"loss": 3.0})
    again.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 3.0)]
    assert path.read_text().count("\n") == 3, "a whole last line gets no empty line after it"
    open_run(tmp_path, world).close()
    assert path.read_text().count("\n") == 3


def test_a_torn_record_of_a_start_costs_no_other(tmp_path, world):
    """Nor does a kill leave half a config.yaml: the old text is there until the new one is whole."""
    run = open_run(tmp_path, world)
    for _ in range(2):
        run.write_config()
    run.close()
    path = tmp_path / "starts.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = open_run(tmp_path, world)
    again.write_config()
    again.close()
    assert len(read_lines(path)) == 2
    before = (tmp_path / "config.yaml").stat().st_ino
    again.write_config()
    assert (tmp_path / "config.yaml").stat().st_ino != before, "replaced, not written over"


def test_no_metrics_yet_is_an_empty_record(tmp_path):
    assert read_metrics(tmp_path) == []


def test_other_ranks_write_nothing(tmp_path):
    run = open_run(tmp_path / "run", World(1, 2, 1, torch.device("cpu")))
    run.log("hello")
    run.log_metrics(1, {"loss": 1.0})
    run.save_grid("g", torch.zeros(1, 3, 4, 4), 1)
    run.close()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, world):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run folder .*file/run cannot be written"):
        open_run(tmp_path / "file" / "run", world)


def hold(run_dir, world, pipe):
    """Another process with a run in `run_dir`, and a child of its own, as a data loader has."""
    run = open_run(run_dir, world)  # kept: the lock goes with the object
    helper = os.fork()
    if helper == 0:
        time.sleep(60)
        os._exit(0)
    pipe.send(helper)
    time.sleep(60)
    run.close()


def test_a_folder_has_one_run_and_is_free_once_that_is_killed(tmp_path, world):
    """A second run is refused and harms nothing; after SIGKILL the folder is free at once. Regression: helper processes
    of a killed run, which live a little longer, kept the lock, and the same command was refused.
    """
    mine, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run", world, theirs))
    process.start()
    helper = mine.recv()
    try:
        with pytest.raises(UserError, match=r"is in use by another process; wait, or set loop.run_dir"):
            open_run(tmp_path / "run", world)
        process.kill()
        process.join()
        open_run(tmp_path / "run", world).close()
    finally:
        process.kill()
        os.kill(helper, signal.SIGKILL)


def test_every_start_is_on_record(tmp_path, world, monkeypatch):
    """Command, code, libraries, device and the variables that matter, one line a start; nothing else of the
    environment.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    for _ in range(2):
        run = open_run(tmp_path / "run", world)
        run.write_config()
        run.close()
    text = (tmp_path / "run" / "starts.jsonl").read_text()
    records = read_lines(tmp_path / "run" / "starts.jsonl")
    assert len(records) == 2 and "hunter2" not in text
    for record in records:
        assert record["command"] == sys.argv and record["processes"] == 1
        assert {"python", "torch", "numpy"} <= set(record["versions"]) and record["device"]["type"] == "cpu"
        assert record["environment"]["OMP_NUM_THREADS"] == "1" and set(record["git"]) == {"sha", "dirty"}


@pytest.mark.parametrize("changed", [False, True])
def test_the_record_says_whether_the_code_was_changed(changed, tmp_path, world, monkeypatch):
    """`dirty` is true where tracked files differ from the commit; outside of git both are unknown."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "code.py").write_text("1")
    monkeypatch.setattr(installation, "CODE", tmp_path)
    assert start_record(world)["git"] == {"sha": "unknown", "dirty": "unknown"}
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "code.py").write_text("2" if changed else "1")
    found = start_record(world)["git"]
    assert found["dirty"] is changed and len(found["sha"]) == 40
