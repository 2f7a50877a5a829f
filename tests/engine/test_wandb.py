"""engine/wandb_run.py with a stand-in for the package: what it is told, and what a user is told when it fails."""

import hashlib
import sys
import types

import pytest
import torch

from engine.config import merge_config
from engine.loop import LoopConfig
from engine.messages import UserError
from engine.run_log import Run
from engine.wandb_run import WandbConfig


class FakeRun:
    """Keeps what is logged, by the metric `step`; online, the summary is there again when a run is resumed."""

    def __init__(self, module, **settings):
        self.settings = settings
        self.rows = module.rows.setdefault(settings["id"], {})
        self.url = "https://w.example/run" if module.is_online else None
        self.name, self.dir = settings["name"], "x/offline-run-1/files"
        self.summary = {"step": max(self.rows)} if module.is_online and self.rows else {}
        self.artifacts, self.exit_code, self.step_metrics = [], None, {}

    def define_metric(self, name, step_metric=None):
        self.step_metrics[name] = step_metric

    def log(self, values):
        values = dict(values)
        row = self.rows.setdefault(values.pop("step"), {})
        assert not row.keys() & values.keys(), f"{values} is there already"
        row.update(values)

    def log_artifact(self, artifact, aliases):
        self.artifacts.append((artifact, aliases))

    def finish(self, exit_code):
        self.exit_code = exit_code


class Artifact:
    def __init__(self, name, type, metadata):
        self.name, self.type, self.metadata, self.files = name, type, metadata, []

    def add_file(self, path):
        self.files.append(path.rpartition("/")[2])


@pytest.fixture
def wandb(monkeypatch):
    """The stand-in; `wandb.runs` are those that were opened, `wandb.rows` what was kept: {id: {step: values}}."""
    module = types.ModuleType("wandb")
    module.Error = type("Error", (Exception,), {})
    module.Image = lambda path: ("image", path)
    module.Artifact = Artifact
    module.runs, module.rows, module.is_online = [], {}, True

    def init(**settings):
        module.runs.append(FakeRun(module, **settings))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def open_run(folder, world, **section) -> Run:
    loop = LoopConfig(steps=7, trackers=["wandb"], wandb=WandbConfig(**{"project": "tokens", **section}))
    return Run(folder, loop, world, loop.tracker_sections())


def test_metrics_config_pictures_and_summary_are_sent(wandb, tmp_path, world):
    """Each with its step; pictures of one kind under one name; the run has the name of its folder."""
    with open_run(tmp_path / "run", world) as run:
        run.begin(0)
        run.log_metrics(3, {"loss": 0.5})
        run.save_grid("val_00000003", torch.zeros(1, 3, 4, 4), 1)
        run.save_grid("bad_00000003", torch.full((1, 3, 4, 4), torch.nan), 1)
        run.finish(3)
    (sent,) = wandb.runs
    assert sent.settings["project"] == "tokens" and sent.settings["name"] == "run"
    assert sent.settings["config"]["steps"] == 7 and type(sent.settings["config"]) is dict
    picture = ("image", str(tmp_path / "run/samples/val_00000003.png"))
    assert sent.rows == {3: {"loss": 0.5, "samples/val": picture}} and sent.exit_code == 0
    assert sent.step_metrics == {"step": None, "*": "step"}
    assert sent.summary["steps"] == 3 and sent.summary["state"] == "finished" and sent.artifacts == []
    assert "wandb       https://w.example/run" in (tmp_path / "run/log.txt").read_text()


def test_a_phase_has_the_name_of_its_run_and_a_name_of_the_config_counts(wandb, tmp_path, world):
    open_run(tmp_path / "run/phase_2", world).close()
    open_run(tmp_path / "other", world, name="mine", entity="team").close()
    assert [run.settings["name"] for run in wandb.runs] == ["run phase_2", "mine"]
    assert [run.settings["entity"] for run in wandb.runs] == [None, "team"]


@pytest.mark.parametrize("is_online", [True, False])
def test_a_resume_neither_repeats_nor_loses_records(wandb, tmp_path, world, is_online):
    """Killed after step 6, with the validation of that step not on file; the newest checkpoint is of step 4."""
    wandb.is_online = is_online
    run = open_run(tmp_path / "run", world)
    run.begin(0)
    for step in (2, 4):
        run.log_metrics(step, {"loss": 1 / step})
        run.log_metrics(step, {"val/loss": 2 / step})
    run.log_metrics(6, {"loss": 1 / 6})
    run.close(failed=True)

    with open_run(tmp_path / "run", world) as run:
        run.begin(4)
        for step in (6, 8):
            run.log_metrics(step, {"loss": 1 / step})
            run.log_metrics(step, {"val/loss": 2 / step})
        run.finish(8)
    place = "https://w.example/run" if is_online else "wandb sync x/offline-run-*"
    assert f"wandb       {place}\n" in (tmp_path / "run/log.txt").read_text()
    (rows,) = wandb.rows.values()
    assert rows == {step: {"loss": 1 / step, "val/loss": 2 / step} for step in (2, 4, 6, 8)}
    assert [run.exit_code for run in wandb.runs] == [1, 0]


def test_records_that_wandb_lacks_are_sent_at_the_next_start(wandb, tmp_path, world):
    """Those that were lost on their way, and all earlier ones where wandb is switched on later."""
    with Run(tmp_path / "run", LoopConfig(), world) as run:
        for step in (1, 2, 3):
            run.log_metrics(step, {"loss": 1.0})
    with open_run(tmp_path / "run", world) as run:
        run.begin(2)
        assert sorted(wandb.runs[0].rows) == [1, 2], "the third will come again"
        run.log_metrics(3, {"loss": 1.0})
    del wandb.runs[0].rows[3], wandb.runs[0].rows[2]  # as after a lost connection
    with open_run(tmp_path / "run", world) as run:
        run.begin(3)
    assert sorted(wandb.runs[1].rows) == [1, 2, 3]


def test_weights_are_uploaded_where_the_config_asks_for_it(wandb, tmp_path, world):
    """Without the state of the optimizer, under a name that wandb accepts."""
    checkpoint = tmp_path / "a run" / "checkpoints" / "step_00000003"
    (checkpoint / "state").mkdir(parents=True)
    for name in ("config.yaml", "model.safetensors", "ema.safetensors", "state/x.distcp"):
        (checkpoint / name).write_text("x")
    with open_run(tmp_path / "a run", world, log_checkpoint=True) as run:
        for tracker in run._trackers.values():
            tracker.finish({"steps": 3}, checkpoint)
    ((artifact, aliases),) = wandb.runs[0].artifacts
    assert artifact.files == ["config.yaml", "ema.safetensors", "model.safetensors"] and artifact.type == "model"
    assert aliases == ["latest", "step_00000003"] and artifact.name == f"a-run-{wandb.runs[0].settings['id']}"


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


def test_the_old_key_still_asks_for_wandb():
    """`loop.wandb_project`; and a tracker alone has the default project."""
    loop = merge_config(LoopConfig, [("test", ["wandb.project=tokens"])])
    assert list(loop.tracker_sections()) == ["wandb"]
    from tokenizer.training.config import TokenizerTrainConfig

    config = merge_config(TokenizerTrainConfig, [("test", ["loop.wandb_project=tokens"])])
    assert config.loop.wandb.project == "tokens" and list(config.loop.tracker_sections()) == ["wandb"]
    assert LoopConfig().tracker_sections() == {}
    with pytest.raises(UserError, match=r"trackers=\['x'\] must be a list of some of: tensorboard, wandb"):
        LoopConfig(trackers=["x"])


def test_a_missing_key_is_one_clear_error_and_frees_the_folder(wandb, tmp_path, world):
    """Before the training; the same folder can be used at once."""
    init = wandb.init

    def refuse(**settings):
        raise wandb.Error("api_key not configured (no-tty)")

    wandb.init = refuse
    with pytest.raises(UserError, match=r"wandb\.project=tokens: .*api_key not configured.* WANDB_MODE=offline"):
        open_run(tmp_path / "run", world)
    wandb.init = init
    open_run(tmp_path / "run", world).close()


def test_without_the_package_its_group_is_named(monkeypatch, tmp_path, world):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs wandb; run: bash env_install.sh --extras quickstart,wandb"):
        open_run(tmp_path / "run", world)
