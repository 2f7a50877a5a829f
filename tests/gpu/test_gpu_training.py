"""Training on a GPU: as on the CPU, the same bits in deterministic mode, exact resuming, bf16 and compiled blocks."""

import math
import shutil

import pytest
import tiny
import torch
from test_exactness import assert_close_runs, train_gpt, train_tokenizer
from torch import nn

from engine.optim import OptimConfig
from engine.run_log import read_metrics
from engine.trained_model import TrainedModel
from engine.world import distributed_world
from evaluations.fingerprint import digests

pytestmark = pytest.mark.gpu

NO_DROPOUT = ["model.gpt.token_dropout=0", "model.gpt.residual_dropout=0"]
GAN = [*tiny.GAN, "optim.eps=1e-3"]  # a small eps amplifies rounding
VARIANTS = {  # what is switched on -> overrides of the tiny tokenizer
    "gan and ema": GAN,
    "entropy and shortcut": ["loss.entropy_weight=0.1", "loss.shortcut.end_step=5"],
    "warm-up and k-means": ["model.quantizer.vq={warmup_steps: 3, init: kmeans}"],
    "micro-batches and loaders": [*GAN, "loop.grad_accum=2", "data.num_workers=2"],
    "bf16": ["loop.precision=bf16", *GAN],
    "asynchronous saves": ["loop.async_save=true", *GAN],
    "recomputation": ["loop.activation_checkpointing=true"],
}


def losses(run) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


# ------------------------------------------------------------------------------------------------ against the CPU
def test_a_tokenizer_trains_as_on_the_cpu(tmp_path, image_folder, world, gpu_world):
    """Every recorded number of 6 steps with a discriminator, validation, and the final weights."""
    for name, place in (("cpu", world), ("gpu", gpu_world)):
        train_tokenizer(place, tmp_path / name, image_folder, *GAN, "loop.eval_every=3")
    assert_close_runs(tmp_path / "cpu", tmp_path / "gpu", rel=2e-3)


def test_a_generator_trains_as_on_the_cpu(tmp_path, codes, world, gpu_world):
    options = [*NO_DROPOUT, "ema_decay=0.9", "loop.eval_every=3", "optim.eps=1e-3"]
    for name, place in (("cpu", world), ("gpu", gpu_world)):
        train_gpt(place, tmp_path / name, *codes, *options)
    assert_close_runs(tmp_path / "cpu", tmp_path / "gpu", rel=2e-3)


def test_bf16_follows_float32(tmp_path, image_folder, codes, gpu_world):
    """Losses of 6 steps within 5 %."""
    for precision in ("fp32", "bf16"):
        option = f"loop.precision={precision}"
        train_tokenizer(gpu_world, tmp_path / f"tokenizer {precision}", image_folder, option)
        train_gpt(gpu_world, tmp_path / f"gpt {precision}", *codes, *NO_DROPOUT, option)
    for name in ("tokenizer", "gpt"):
        full, half = losses(tmp_path / f"{name} fp32"), losses(tmp_path / f"{name} bf16")
        assert len(full) == 6 and half == pytest.approx(full, rel=0.05)


def test_compiled_blocks_train_alike(tmp_path, codes, image_folder, gpu_world):
    """Also recomputed ones, and in bf16."""
    for precision, rel in (("fp32", 1e-3), ("bf16", 0.05)):
        for name, options in (("plain", []), ("compiled", ["loop.compile=true", "loop.activation_checkpointing=true"])):
            run = tmp_path / f"{name} {precision}"
            train_gpt(gpu_world, run, *codes, *NO_DROPOUT, f"loop.precision={precision}", *options)
        compiled, plain = losses(tmp_path / f"compiled {precision}"), losses(tmp_path / f"plain {precision}")
        assert compiled == pytest.approx(plain, rel=rel)


# ------------------------------------------------------------------------------------------------ bits
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_deterministic_run_is_repeated_and_resumed_bit_for_bit(variant, tmp_path, image_folder):
    """Six steps twice, and six of which the last three begin with a checkpoint: one digest."""
    options = [*VARIANTS[variant], "loop.deterministic=true", "loop.save_every=3"]
    with distributed_world("cuda", deterministic=True, tf32=False) as world:
        for name in ("one", "two"):
            train_tokenizer(world, tmp_path / name, image_folder, *options)
        shutil.copytree(tmp_path / "one", tmp_path / "resumed")
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_00000006")
        train_tokenizer(world, tmp_path / "resumed", image_folder, *options)
    expected = digests(tmp_path / "one")
    assert digests(tmp_path / "two") == expected and digests(tmp_path / "resumed") == expected


def test_a_deterministic_generator_is_resumed_bit_for_bit(tmp_path, codes):
    """With dropout, whose random numbers belong to the step."""
    options = ["loop.deterministic=true", "loop.save_every=3", "ema_decay=0.9"]
    with distributed_world("cuda", deterministic=True, tf32=False) as world:
        train_gpt(world, tmp_path / "one", *codes, *options)
        shutil.copytree(tmp_path / "one", tmp_path / "resumed")
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_00000006")
        train_gpt(world, tmp_path / "resumed", *codes, *options)
    assert digests(tmp_path / "resumed") == digests(tmp_path / "one")


def test_a_run_of_the_gpu_goes_on_on_the_cpu(tmp_path, image_folder, world, gpu_world):
    """And the other way round: states carry no device."""
    options = [*GAN, "loop.save_every=3"]
    for name, first, second in (("to cpu", gpu_world, world), ("to gpu", world, gpu_world)):
        train_tokenizer(first, tmp_path / name, image_folder, *options)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step_00000006")
        train_tokenizer(second, tmp_path / name, image_folder, *options)
        assert all(math.isfinite(loss) for loss in losses(tmp_path / name))
    assert_close_runs(tmp_path / "to cpu", tmp_path / "to gpu", rel=2e-3, count=6)


def test_a_gradient_that_is_not_finite_leaves_no_trace(gpu_world):
    """Weights, averages and moments are as before, and the next update is made."""
    torch.manual_seed(0)
    trained = TrainedModel(nn.Linear(4, 2), OptimConfig(lr=0.1), total_steps=9, world=gpu_world, ema_decay=0.9)
    inputs = torch.ones(3, 4, device=gpu_world.device)

    def update(step: int, factor: float) -> dict[str, torch.Tensor]:
        (trained.wrapped(inputs).square().sum() * factor).backward()
        trained.step(step, {})
        state = trained.state_dict()
        moments = {k: v for k, v in state["optimizer"]["state"].items() if isinstance(v, dict)}
        tensors = {**state["model"], **{f"ema.{k}": v for k, v in state["ema"].items()}}
        for name, values in moments.items():
            tensors |= {f"{name}.{k}": v for k, v in values.items() if k != "step"}
        return {name: tensor.clone() for name, tensor in tensors.items()}

    good = update(0, 1.0)
    skipped = update(1, math.nan)
    assert len(good) > 6 and all(torch.equal(tensor, skipped[name]) for name, tensor in good.items())
    again = update(2, 1.0)
    assert not torch.equal(again["weight"], good["weight"]) and torch.isfinite(again["weight"]).all()
