"""engine/wandb_run.py with a stand-in for the package: what it is told, and what a user is told when it fails."""

import hashlib
import sys
import types

import pytest
import torch

from engine.loop import LoopConfig
from engine.messages import UserError
from engine.run_log import Run


class FakeRun:
    """Keeps what is logged."""

    def __init__(self, **settings):
        self.settings, self.logged, self.finished = settings, [], False

    def log(self, values, step=None):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """The stand-in; `wandb.runs` are those that were opened."""
    module = types.ModuleType("wandb")
    module.Error = type("Error", (Exception,), {})
    module.Image = lambda path: ("image", path)
    module.runs = []

    def init(**settings):
        module.runs.append(FakeRun(**settings))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def open_run(folder, world) -> Run:
    return Run(folder, LoopConfig(steps=7), world, wandb_project="tokens")


def test_metrics_config_and_pictures_are_sent(wandb, tmp_path, world):
    """Each with its step; pictures of one kind under one name."""
    with open_run(tmp_path / "run", world) as run:
        run.log_metrics(3, {"loss": 0.5})
        run.save_grid("val_00000003", torch.zeros(1, 3, 4, 4), 1)
        run.save_grid("bad_00000003", torch.full((1, 3, 4, 4), torch.nan), 1)
    (sent,) = wandb.runs
    assert sent.settings["project"] == "tokens" and sent.settings["name"] == "run"
    assert sent.settings["config"]["steps"] == 7 and type(sent.settings["config"]) is dict
    picture = ("image", str(tmp_path / "run/samples/val_00000003.png"))
    assert sent.logged == [(3, {"loss": 0.5}), (3, {"samples/val": picture})] and sent.finished


def test_a_resumed_run_is_the_same_and_a_deleted_one_another(wandb, tmp_path, world):
    """Regression: the id was a hash of the path, so that a run which was started anew wrote into the old one."""
    for name in ("a", "a", "b"):
        open_run(tmp_path / name, world).close()
    (tmp_path / "a").rename(tmp_path / "old")
    open_run(tmp_path / "a", world).close()
    open_run(tmp_path / "old", world).close()
    first, again, other, anew, moved = (run.settings["id"] for run in wandb.runs)
    assert first == again == moved and len({first, other, anew}) == 3
    assert all(run.settings["resume"] == "allow" for run in wandb.runs)


def test_a_run_of_an_older_version_keeps_its_id(wandb, tmp_path, world):
    """It was the first 16 digits of the SHA-256 of its path."""
    (tmp_path / "run" / "wandb").mkdir(parents=True)
    open_run(tmp_path / "run", world).close()
    assert wandb.runs[0].settings["id"] == hashlib.sha256(str(tmp_path / "run").encode()).hexdigest()[:16]


def test_a_missing_key_is_one_clear_error_and_frees_the_folder(wandb, tmp_path, world):
    """Before the training; the same folder can be used at once."""
    init = wandb.init

    def refuse(**settings):
        raise wandb.Error("api_key not configured (no-tty)")

    wandb.init = refuse
    with pytest.raises(UserError, match=r"wandb_project=tokens: .*api_key not configured.* WANDB_MODE=offline"):
        open_run(tmp_path / "run", world)
    wandb.init = init
    open_run(tmp_path / "run", world).close()


def test_without_the_package_its_group_is_named(monkeypatch, tmp_path, world):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs wandb; run: bash env_install.sh --extras quickstart,wandb"):
        open_run(tmp_path / "run", world)
