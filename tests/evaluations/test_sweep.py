"""evaluations/sweep.py: which runs a sweep has, that a failure does not end it, and that it is continued."""

import json
import sys

import pytest
import tiny
import torch
from forked_stages import ForkedStages

import evaluations.sweep as sweep
from engine import pipeline
from engine.messages import UserError
from engine.pipeline import Stage, StageLog
from evaluations.pipelines.sweep import (
    Choices,
    SweepRecord,
    grid_of,
    name_of,
    parse_choices,
    parse_range,
    random_draws,
    train_all,
)


@pytest.fixture
def recipe(tmp_path, image_folder):
    """A tiny tokenizer's YAML that trains in this process in a second."""
    data = f"name: folder, root: {image_folder / 'train'}, val_root: {image_folder / 'val'}"
    text = tiny.TOKENIZER.replace("data: {", f"data: {{{data}, ").replace("steps: 6", "steps: 2")
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------ which runs
def test_a_grid_has_all_combinations_and_names_say_them():
    """Values may be lists and sections; a value that no folder should be called like has a digest."""
    choices = [parse_choices("optim.lr=1e-3,3e-3"), parse_choices("model.x.lr=[1, 2],{a: b}")]
    assert choices[1] == Choices("model.x.lr", ("[1, 2]", "{a: b}"))
    grid = grid_of(choices)
    assert len(grid) == 4 and grid[0] == {"optim.lr": "1e-3", "model.x.lr": "[1, 2]"}
    assert name_of({"optim.lr": "1e-3", "loop.seed": "2"}) == "lr_1e-3-seed_2"
    names = [name_of(values) for values in grid]
    assert len(set(names)) == 4 and all(name.startswith("optim.lr_") and "/" not in name for name in names)
    assert name_of({"a": "../x"}) != name_of({"a": ".._x"}) and "/" not in name_of({"a": "../x"})
    assert len(name_of({"a": "1" * 500})) <= 100


def test_random_draws_repeat_with_their_seed_and_lie_in_their_ranges():
    """More draws begin with the same ones; none occurs twice; too many for the choices are refused."""
    varied = [parse_range("lr=1e-4:1e-2:log"), parse_range("size=2:5"), parse_choices("name=a,b")]
    draws = random_draws(varied, 30, seed=1)
    assert draws[:10] == random_draws(varied, 10, seed=1) != random_draws(varied, 10, seed=2)
    assert all(1e-4 <= float(d["lr"]) <= 1e-2 and d["size"] in "2345" and d["name"] in "ab" for d in draws)
    assert sum(float(d["lr"]) < 1e-3 for d in draws) > 5, "evenly over the logarithm"
    assert len({tuple(d.values()) for d in draws}) == 30
    assert len(random_draws(varied[1:], 8, seed=0)) == 8
    with pytest.raises(UserError, match="only 8 different combinations"):
        random_draws(varied[1:], 9, seed=0)


@pytest.mark.parametrize("text", ["optim.lr", "=1,2", "optim.lr=1,,2", "optim.lr=[1,2", "optim.lr="])
def test_a_grid_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="must be of the form key=value,value"):
        parse_choices(text)


@pytest.mark.parametrize(
    "text", ["lr", "lr=1", "lr=2:1", "lr=a:b", "lr=0:1:log", "lr=1:2:cubic", "lr=nan:1", "lr=1:inf"]
)
def test_a_range_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="must be of the form key=low:high"):
        parse_range(text)


# ------------------------------------------------------------------------------------------------ the command
def test_wrong_values_are_told_before_anything_starts(recipe, tmp_path, entry):
    """All of them, each once, with how many runs have it; nothing is written."""
    grid = ["--grid", "optim.lr=1e-3,-1", "--grid", "loss.l2_wight=1,2"]
    code, _, err = entry(sweep.main, "--config", recipe, "--folder", tmp_path / "sweep", *grid)
    assert code == 2 and "optim.lr=-1.0 must be" in err and "(2 of 4 runs)" in err and "l2_wight" in err
    code, _, err = entry(
        sweep.main, "--config", recipe, "--folder", tmp_path / "sweep", "--grid", "data.image_size=8,9"
    )
    assert code == 2 and "data.image_size=9" in err and "(1 of 2 runs)" in err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing is varied"),
        (["--grid", "optim.lr=1,2", "--grid", "optim.lr=3"], "name each key once"),
        (["--grid", "loop.run_dir=a,b"], "loop.run_dir cannot be varied"),
        (["--grid", "optim.lr=1,2", "optim.lr=3"], "optim.lr=3: this sweep varies optim.lr"),
        (["--grid", "optim.lr=1,2", "loop.run_dir=a"], "loop.run_dir=a: each run of a sweep has a folder of its own"),
        (["--range", "optim.lr=1:2"], "--range needs --random N"),
        (["--grid", f"loop.seed={','.join(map(str, range(1001)))}"], "1,001 runs; a sweep has 1,000 at most"),
    ],
)
def test_what_cannot_be_swept_is_told(recipe, tmp_path, entry, flags, message):
    code, _, err = entry(sweep.main, "--config", recipe, "--folder", tmp_path / "sweep", *flags)
    assert code == 2 and message in err


def test_a_dry_run_lists_the_runs(recipe, tmp_path, entry):
    code, out, err = entry(
        sweep.main,
        "--config",
        recipe,
        "--folder",
        tmp_path / "s",
        "--grid",
        "loop.seed=0,1",
        "--dry-run",
        "optim.lr=1e-3",
    )
    assert code == 0, err
    assert out.splitlines() == [
        "seed_0: loop.seed=0",
        "seed_1: loop.seed=1",
        f"2 runs in {tmp_path / 's'}",
    ]


def test_equal_values_in_two_spellings_are_one_run(recipe, tmp_path, entry):
    """By the configs, so that texts stay different; a run that is on record in another spelling keeps its name."""
    command = ["--config", recipe, "--folder", tmp_path / "s", "--dry-run"]
    grids = ["--grid", "optim.lr=1e-3,0.001,2e-3", "--grid", "data.random_crop=true,True"]
    code, out, err = entry(sweep.main, *command, *grids)
    assert code == 0 and [line.partition(":")[0] for line in out.splitlines()] == [
        "lr_1e-3-random_crop_true", "lr_2e-3-random_crop_true", f"2 runs in {tmp_path / 's'}"
    ]  # fmt: skip
    assert "lr_0.001-random_crop_True is the same training as lr_1e-3-random_crop_true: it is trained once" in err

    (tmp_path / "s").mkdir()
    runs = {"lr_0.001-seed_1": {"optim.lr": "0.001", "loop.seed": "1"}, "lr_9-seed_1": {"optim.lr": "-9"}}
    SweepRecord(tmp_path / "s").plan({}, runs)
    _, out, err = entry(sweep.main, *command, "--grid", "optim.lr=1e-3,2e-3", "--grid", "loop.seed=1")
    assert "\nlr_0.001-seed_1: optim.lr=1e-3 loop.seed=1\nlr_2e-3-seed_1: " in f"\n{out}", out + err


def test_a_sweep_is_looked_at_where_variables_are_not_set(tmp_path, entry, monkeypatch):
    monkeypatch.delenv("IMGNET_ROOT", raising=False)
    command = ["--config", "vq/VQ_SS256", "--folder", tmp_path / "s", "--grid", "loop.seed=1,2"]
    code, out, err = entry(sweep.main, *command, "--dry-run")
    assert code == 0 and "2 runs in " in out and out.count("variable IMGNET_ROOT is not set") == 1, err
    code, _, err = entry(sweep.main, *command)
    assert code == 2 and "variable IMGNET_ROOT is not set" in err and not (tmp_path / "s").exists()


def test_a_sweep_trains_goes_on_after_a_failure_and_is_continued(recipe, tmp_path, entry, monkeypatch):
    """Real trainings: one run ends with an error, is named with its state on the page, and is tried again."""
    monkeypatch.setenv("NPROC_PER_NODE", "1")
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)  # the Python of this test trains
    folder = tmp_path / "sweep"
    if not torch.cuda.is_available():  # a fork lacks the threads that autograd has started for GPUs
        monkeypatch.setattr(pipeline, "_run", ForkedStages(folder))
    blocked = folder / "lr_1e-3"
    blocked.parent.mkdir()
    blocked.write_text("in the way")  # no folder can be made here
    command = [sweep.main, "--config", recipe, "--folder", folder, "--grid", "optim.lr=1e-3,2e-3"]
    code, _, err = entry(*command)
    assert code == 2 and "1 of 2 runs failed: lr_1e-3; the same command tries them again" in err
    page = (folder / "report.html").read_text()
    assert '<h1>sweep: sweep of 2 runs, <span class="whole">begun 20' in page
    assert "1 failed" in page and "lr_1e-3: exit code" in page
    assert (folder / "lr_2e-3" / "metrics.jsonl").is_file()

    blocked.unlink()
    finished = (folder / "lr_2e-3" / "metrics.jsonl").stat().st_mtime_ns
    code, _, err = entry(*command)
    assert code == 0 and "2 of 2 runs are finished" in err and "lr_2e-3: done before, skipped" in err
    assert (folder / "lr_2e-3" / "metrics.jsonl").stat().st_mtime_ns == finished
    page = (folder / "report.html").read_text()
    assert "2 finished" in page and "The runs differ in optim.lr." in page

    code, _, err = entry(*command, "optim.weight_decay=0.5")
    assert code == 2 and "was begun with another recipe (config.optim.weight_decay: " in err


# ------------------------------------------------------------------------------------------------ training
def test_every_run_is_tried_and_noted(tmp_path):
    """After each the page is written; a value that is added later is a further run."""
    record = SweepRecord(tmp_path)
    record.plan({"trainer": "x"}, {"a": {"k": "1"}, "b": {"k": "y"}})
    shown = []
    stages = [Stage("a", ["false"]), Stage("b", ["true"])]
    assert train_all(tmp_path, stages, record, lambda: shown.append(1)) == ["a"] and len(shown) == 2
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert runs["a"]["failure"].startswith("exit code 1") and runs["b"] == {"values": {"k": "y"}, "failure": ""}
    assert runs["a"]["values"] == {"k": 1.0} and StageLog(tmp_path).done("b")

    again = SweepRecord(tmp_path)
    again.plan({"trainer": "x"}, {"c": {"k": "2"}})
    assert list(SweepRecord(tmp_path).runs) == ["a", "b", "c"]
