"""A run that was interrupted is the run that was not: real training tasks, bit for bit."""

import os
import shutil
import signal

import numpy as np
import pytest
import tiny
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import autoregressive.train
import tokenizer.train
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.task import GeneratorTask
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.config import load_config
from engine.messages import ConfigError
from engine.meters import METERS
from engine.run_log import read_metrics
from engine.stopping import EXIT_STOPPED
from evaluations.digits.training import ClassifierTrainConfig
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.task import TokenizerTask

VARIANTS = {  # what is switched on -> overrides of the tiny tokenizer
    "gan and ema": tiny.GAN,
    "gan after the restart": [*tiny.GAN, "loss.discriminator.start_step=5"],
    "gan with batch norm": [*tiny.GAN, "loss.discriminator.patchgan.norm=batch"],
    "warm-up and k-means": ["model.quantizer.vq={warmup_steps: 4, init: kmeans}", "ema_decay=0.9"],
    "entropy and shortcut": ["loss.entropy_weight=0.1", "loss.shortcut.end_step=5"],
    "micro-batches and loaders": [*tiny.GAN, "loop.grad_accum=2", "data.num_workers=2"],
    "bf16": ["loop.precision=bf16", *tiny.GAN],
    "lecam": [*tiny.GAN, "loss.discriminator.lecam_weight=0.1", "loss.discriminator.generator_loss=non_saturating"],
    "averages and random restarts": [
        "model.quantizer.vq={update: ema, restart: random, restart_threshold: 0.5, decay: 0.6}", "ema_decay=0.9",
    ],
    "nearest restarts": ["model.quantizer.vq={restart: nearest}", "ema_decay=0.9", "loop.grad_accum=2"],
    "scales": tiny.SCALES,
    "rate after the step": ["optim.lr_after_step=true", "optim.warmup_steps=4"],
}  # fmt: skip


def full_state(run_dir, tmp_path) -> dict:
    """Everything in the newest checkpoint: weights, EMA, moments, counters of every network."""
    folder = checkpoint_folders(run_dir)[-1]
    assert read_manifest(folder)["step"] == 6
    dcp_to_torch_save(folder / "state", tmp_path / "state.pt")
    return flat(torch.load(tmp_path / "state.pt", weights_only=False))


def equal(x, y) -> bool:
    return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def flat(tree, prefix="") -> dict:
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in flat(value, f"{prefix}.{name}").items()}
    return {prefix: tree}


def assert_same_run(a, b, tmp_path) -> None:
    """Equal training states and equal records."""
    one, two = full_state(a, tmp_path), full_state(b, tmp_path)
    assert one.keys() == two.keys() and any("exp_avg" in name for name in one)
    different = [
        n for n, v in one.items() if not (torch.equal(v, two[n]) if isinstance(v, torch.Tensor) else v == two[n])
    ]
    assert not different
    assert records(a) == records(b)


def records(run_dir) -> list[dict]:
    clocks = ("time", *METERS)
    return [{k: v for k, v in record.items() if k not in clocks} for record in read_metrics(run_dir)]


def forget(run_dir, step: int) -> None:
    """The run as it was when it had only the checkpoints before `step`; all other random states differ."""
    shutil.rmtree(run_dir / "checkpoints" / f"step_{step:08d}")
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    np.random.seed(int.from_bytes(os.urandom(4), "little"))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_six_steps_are_three_and_three(variant, tmp_path, image_folder, world):
    """Tokenizer: a restart from step 3 reproduces weights, EMA, optimizer moments and every recorded number exactly."""

    def run(name, *more):
        config = tiny.tokenizer_config(tmp_path / name, image_folder, *VARIANTS[variant], *more)
        tokenizer.train.train(config, world)

    run("straight")
    run("restarted", "loop.save_every=3")
    forget(tmp_path / "restarted", 6)
    run("restarted", "loop.save_every=3")
    assert "resumed from step 3 of 6" in (tmp_path / "restarted" / "log.txt").read_text()
    assert_same_run(tmp_path / "straight", tmp_path / "restarted", tmp_path)


def test_saves_evaluations_and_logging_leave_no_trace(tmp_path, image_folder, world):
    """A run that validates, saves and logs at every step trains the same network as one that does so once."""
    quiet = ["loop.log_every=6"]
    busy = ["loop.log_every=1", "loop.eval_every=1", "loop.save_every=1"]
    for name, options in (("quiet", quiet), ("busy", busy)):
        gan = VARIANTS["gan after the restart"]
        tokenizer.train.train(tiny.tokenizer_config(tmp_path / name, image_folder, *gan, *options), world)
    one, two = full_state(tmp_path / "quiet", tmp_path), full_state(tmp_path / "busy", tmp_path)
    assert all(equal(one[name], two[name]) for name in one)


def test_gpt_with_dropout_restarts_exactly(tmp_path, codes, world):
    """Dropout masks, label dropout and views are functions of (seed, rank, step) and of positions."""

    def run(name, *more):
        config = tiny.gpt_config(tmp_path / name, *codes, "ema_decay=0.9", *more)
        autoregressive.train.train(config, world)

    run("straight")
    run("restarted", "loop.save_every=3")
    forget(tmp_path / "restarted", 6)
    run("restarted", "loop.save_every=3")
    assert_same_run(tmp_path / "straight", tmp_path / "restarted", tmp_path)
    run("no dropout", "model.gpt.token_dropout=0", "model.gpt.residual_dropout=0")
    assert records(tmp_path / "no dropout") != records(tmp_path / "straight"), "dropout did nothing"


@pytest.mark.parametrize("kind", ["tokenizer", "gpt"])
def test_a_run_that_ends_early_goes_on_exactly(kind, tmp_path, image_folder, codes, world):
    """`loop.stop_at=3` of 6 steps, then none: schedules are those of 6 steps throughout, and so is every bit."""

    def run(name, *more):
        options = ["optim={schedule: wsd, decay_fraction: 0.9}", "loop.eval_every=3", *more]
        if kind == "gpt":
            autoregressive.train.train(tiny.gpt_config(tmp_path / name, *codes, *options), world)
        else:
            gan = VARIANTS["gan after the restart"]
            tokenizer.train.train(tiny.tokenizer_config(tmp_path / name, image_folder, *gan, *options), world)

    run("straight")
    run("stopped", "loop.stop_at=3")
    assert read_manifest(checkpoint_folders(tmp_path / "stopped")[-1])["step"] == 3
    torch.manual_seed(99)
    run("stopped")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped", tmp_path)
    rates = [record["lr"] for record in records(tmp_path / "stopped") if "lr" in record]
    assert len(rates) == 6 and rates[1] > rates[2] > rates[5], "the decay began before the stop"


@pytest.mark.parametrize("config", [TokenizerTrainConfig, GPTTrainConfig, ClassifierTrainConfig])
def test_an_early_end_behind_the_end_is_refused(config):
    with pytest.raises(ConfigError, match=r"loop\.stop_at=7 must be at most 6, the steps of the training; 0 = off"):
        load_config(config, overrides=["loop={steps: 6, stop_at: 7}"])


def signal_at(monkeypatch, task, number: signal.Signals, step: int) -> None:
    """The process gets a signal in the middle of update `step`."""
    real = task.train_step

    def train_step(self, micro_batches, at):
        if at == step:
            os.kill(os.getpid(), number)
        return real(self, micro_batches, at)

    monkeypatch.setattr(task, "train_step", train_step)


@pytest.fixture(scope="module")
def without_signal(tmp_path_factory, image_folder, world):
    """A run that no signal stopped. Read only."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    tokenizer.train.train(tiny.tokenizer_config(folder, image_folder, "ema_decay=0.9"), world)
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_saves_and_exits_and_the_same_command_continues(
    number, workers, without_signal, tmp_path, image_folder, entry, monkeypatch
):
    """Exit code 75 after the update that was under way; the second call ends as if nothing had happened."""
    (tmp_path / "tiny.yaml").write_text(tiny.TOKENIZER)

    def run(name):
        data = tiny.folder_data(image_folder)
        options = [*data, f"loop.run_dir={tmp_path / name}", f"data.num_workers={workers}", "ema_decay=0.9"]
        return entry(tokenizer.train.main, "--config", tmp_path / "tiny.yaml", *options)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        signal_at(patched, TokenizerTask, number, step=2)
        code, _, err = run("stopped")
    assert code == EXIT_STOPPED == 75 and "after step 3; the same command continues" in err
    assert [read_manifest(f)["step"] for f in checkpoint_folders(tmp_path / "stopped")] == [3]
    assert signal.getsignal(number) == before, "handlers of the process are put back"
    assert run("stopped")[0] == 0
    assert_same_run(without_signal, tmp_path / "stopped", tmp_path)


def test_a_signal_in_the_last_step_is_a_normal_end(tmp_path, codes, world, monkeypatch):
    signal_at(monkeypatch, GeneratorTask, signal.SIGTERM, step=5)
    autoregressive.train.train(tiny.gpt_config(tmp_path / "run", *codes), world)
    assert read_manifest(checkpoint_folders(tmp_path / "run")[-1])["step"] == 6


def test_a_signal_in_the_last_step_of_a_phase_begins_no_other(tmp_path, image_folder, world, monkeypatch):
    """The phase is finished and saved; the next call trains the other one. Regression: the signal was forgotten."""
    phases = "phases=[{steps: 2, lr: 1e-3}, {steps: 2, lr: 1e-4, generative_decoder: true}]"
    config = tiny.tokenizer_config(tmp_path / "run", image_folder, phases, base=tiny.WETOK)
    with monkeypatch.context() as patched:
        signal_at(patched, TokenizerTask, signal.SIGUSR1, step=1)
        with pytest.raises(SystemExit) as stop:
            tokenizer.train.train(config, world)
    assert stop.value.code == EXIT_STOPPED
    saved = [[read_manifest(f)["step"] for f in checkpoint_folders(tmp_path / "run" / f"phase_{n}")] for n in (1, 2)]
    assert saved == [[2], []]
    tokenizer.train.train(config, world)
    assert read_manifest(checkpoint_folders(tmp_path / "run" / "phase_2")[-1])["step"] == 2


def test_a_finished_run_is_left_alone(tmp_path, codes, world, monkeypatch):
    """The same command after the end trains nothing and writes no checkpoint."""
    config = tiny.gpt_config(tmp_path / "run", *codes)
    autoregressive.train.train(config, world)
    before = (checkpoint_folders(tmp_path / "run")[-1] / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(GeneratorTask, "train_step", None)
    autoregressive.train.train(config, world)
    assert (checkpoint_folders(tmp_path / "run")[-1] / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_all_files_of_a_run_follow_the_umask(umask, tmp_path, image_folder, world):
    """Regression: weights could be read by their owner only, whatever the umask."""
    before = os.umask(umask)
    try:
        tokenizer.train.train(tiny.tokenizer_config(tmp_path / "run", image_folder, "loop.steps=1"), world)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(0o666 & ~umask) for path in files
    }
