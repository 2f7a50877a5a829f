"""One process, micro-batches, two processes: the same training, and the same validation."""

import shutil

import pytest
import tiny
import torch
from ranks import on_ranks

import autoregressive.train
import tokenizer.train
from engine.checkpoint.weights import find_weights, read_weights
from engine.loop import check_batch, seed_step
from engine.messages import UserError
from engine.meters import METERS
from engine.run_log import read_metrics
from engine.world import World, gather_rows
from tokenizer import load_tokenizer

# Exact only without what looks at a whole batch: batch norm, the entropy loss; and without dropout.
EXACT = {
    "gan": [*tiny.GAN],
    "restarts": ["model.quantizer.vq={restart: random, restart_threshold: 0.5, decay: 0.5}"],
    "warm start of the discriminator": [*tiny.GAN, "loss.discriminator={start_step: 1, warmup_steps: 3}"],
    "scales": tiny.SCALES,
    "warm-up, k-means, shortcut": ["model.quantizer.vq={warmup_steps: 3, init: kmeans}", "loss.shortcut.end_step=5"],
}
EVERYWHERE = ["loop.eval_every=3", "data.global_batch_size=8", "optim.eps=1e-3"]  # a small eps amplifies rounding


def train_tokenizer(world: World, run_dir, images, *overrides: str) -> None:
    tokenizer.train.train(tiny.tokenizer_config(run_dir, images, *overrides), world)


def train_gpt(world: World, run_dir, codes, folder, *overrides: str) -> None:
    autoregressive.train.train(tiny.gpt_config(run_dir, codes, folder, *overrides), world)


def assert_close_runs(a, b, rel: float = 1e-5, without: tuple[str, ...] = (), count: int = 8) -> None:
    """Every recorded number but those of names that start with one of `without`, and every final weight agree."""
    one, two = read_metrics(a), read_metrics(b)
    assert [set(r) for r in one] == [set(r) for r in two] and len(one) >= count
    for x, y in zip(one, two, strict=True):
        for name in (n for n in x if not n.startswith(("time", *METERS, *without))):
            assert x[name] == pytest.approx(y[name], rel=rel, abs=1e-7), (x["step"], name)
    x, y = (read_weights(find_weights(run, "model", "run").path) for run in (a, b))
    for name in x:
        torch.testing.assert_close(x[name], y[name], rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("variant", sorted(EXACT))
def test_tokenizer_training_does_not_depend_on_processes(variant, tmp_path, image_folder, world):
    """Loss terms, gradient norms, PSNR and usage of 6 steps: 1 process = 2 micro-batches = 2 processes = both."""
    options = [*EXACT[variant], *EVERYWHERE]
    train_tokenizer(world, tmp_path / "one", image_folder, *options)
    train_tokenizer(world, tmp_path / "accumulated", image_folder, *options, "loop.grad_accum=2")
    on_ranks(2, tmp_path / "a", train_tokenizer, tmp_path / "two", image_folder, *options)
    on_ranks(2, tmp_path / "b", train_tokenizer, tmp_path / "both", image_folder, *options, "loop.grad_accum=2")
    for other in ("accumulated", "two", "both"):
        assert_close_runs(tmp_path / "one", tmp_path / other)


def test_level_dropout_does_not_depend_on_processes(tmp_path, image_folder, world):
    """The levels that an image keeps belong to its position: 1 process = micro-batches on 2 = shards on 2."""
    options = [
        "model.quantizer={vq: null, name: rvq}",
        "model.quantizer.rvq={levels: 3, codebook_size: 8, codebook_dim: 4, level_dropout: 0.8, zero_code: true}",
        "model.quantizer.rvq={warmup_steps: 3, init: kmeans}",
        "ema_decay=0.9",
        *EVERYWHERE,
    ]
    train_tokenizer(world, tmp_path / "one", image_folder, *options)
    on_ranks(2, tmp_path / "a", train_tokenizer, tmp_path / "two", image_folder, *options, "loop.grad_accum=2")
    on_ranks(2, tmp_path / "b", train_tokenizer, tmp_path / "shards", image_folder, *options, "loop.strategy=fsdp")
    for other in ("two", "shards"):
        assert_close_runs(tmp_path / "one", tmp_path / other)


def test_a_run_may_go_on_with_another_number_of_processes(tmp_path, image_folder, world):
    """Three steps on two processes, then three on one, and the other way round."""
    options = [*EXACT["gan"], *EVERYWHERE, "loop.save_every=3"]
    train_tokenizer(world, tmp_path / "one", image_folder, *options)
    on_ranks(2, tmp_path / "a", train_tokenizer, tmp_path / "two", image_folder, *options)
    for name in ("one", "two"):
        shutil.copytree(tmp_path / name, tmp_path / f"from {name}")
        shutil.rmtree(tmp_path / f"from {name}" / "checkpoints" / "step_00000006")
    train_tokenizer(world, tmp_path / "from two", image_folder, *options)
    on_ranks(2, tmp_path / "b", train_tokenizer, tmp_path / "from one", image_folder, *options)
    for other in ("from one", "from two"):
        assert_close_runs(tmp_path / "one", tmp_path / other)


def test_gpt_training_does_not_depend_on_processes(tmp_path, image_folder, world):
    """Label dropout and views belong to positions: with dropout off, the curves are equal."""
    train_tokenizer(world, tmp_path / "tokenizer", image_folder, "loop.steps=1")
    tiny.write_codes(tmp_path / "codes", load_tokenizer(tmp_path / "tokenizer").provenance.fingerprint)
    given = (tmp_path / "codes", tmp_path / "tokenizer")
    options = [
        "model.gpt.token_dropout=0",
        "model.gpt.residual_dropout=0",
        "model.gpt.class_dropout_prob=0.5",
        *EVERYWHERE,
    ]
    train_gpt(world, tmp_path / "one", *given, *options)
    train_gpt(world, tmp_path / "accumulated", *given, *options, "loop.grad_accum=2")
    on_ranks(2, tmp_path / "a", train_gpt, tmp_path / "two", *given, *options)
    for other in ("accumulated", "two"):
        assert_close_runs(tmp_path / "one", tmp_path / other)


def unused_head(world: World, run_dir, images) -> None:
    head = ["model.hybrid.semantic_layer=1", "model.hybrid.semantic_dim=8"]
    train_tokenizer(world, run_dir, images, *head, *EVERYWHERE)


def test_a_head_without_a_loss_does_not_stop_two_processes(tmp_path, image_folder):
    """The published model has a semantic head; with the semantic loss switched off it gets no gradient."""
    on_ranks(2, tmp_path / "a", unused_head, tmp_path / "run", image_folder)
    assert read_metrics(tmp_path / "run")[-1]["step"] == 6


# ---------------------------------------------------------------------------------------------- the world
def collectives(world: World) -> None:
    mine = torch.tensor([[float(world.rank), 1.0]])
    assert torch.equal(world.sum(mine), torch.tensor([[1.0, 2.0]])) and mine[0, 0] == world.rank
    assert torch.equal(gather_rows(mine), torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert world.mean({"a": torch.tensor(float(world.rank)), "b": torch.tensor(2)}) == {"a": 0.5, "b": 2.0}
    assert world.any(world.rank == 1) and not world.any(False)
    assert world.size == 2 and world.is_main == (world.rank == 0)
    world.barrier()


def test_sums_means_and_flags_are_over_all_ranks(tmp_path):
    on_ranks(2, tmp_path, collectives)


def test_a_world_of_one_needs_no_process_group(world):
    mine = torch.tensor([[3.0]])
    assert torch.equal(world.sum(mine), mine) and torch.equal(gather_rows(mine), mine)
    assert world.mean({"a": torch.tensor(3.0)}) == {"a": 3.0} and world.mean({}) == {}
    assert world.any(True) and not world.any(False) and world.is_main


# ---------------------------------------------------------------------------------------------- batches and seeds
@pytest.mark.parametrize(("batch", "size", "accum", "micro"), [(8, 1, 1, 8), (8, 2, 2, 2), (12, 3, 4, 1)])
def test_the_global_batch_is_divided_evenly(batch, size, accum, micro):
    assert check_batch(batch, World(0, size, 0, torch.device("cpu")), accum) == micro


@pytest.mark.parametrize(("batch", "size", "accum"), [(8, 3, 1), (8, 2, 3), (1, 2, 1), (6, 4, 1)])
def test_a_batch_that_cannot_be_divided_is_named(batch, size, accum):
    """The message has the key, the numbers found and what would do."""
    with pytest.raises(UserError) as caught:
        check_batch(batch, World(0, size, 0, torch.device("cpu")), accum)
    for part in (
        f"data.global_batch_size={batch}",
        f"{size} ranks",
        f"loop.grad_accum={accum}",
        f"multiple of {size * accum}",
    ):
        assert part in str(caught.value)


def test_dropout_seeds_differ_by_seed_rank_and_step():
    """No two (seed, rank, step) of a neighbourhood share their random numbers; the same one repeats them."""

    def draw(seed, rank, step):
        seed_step(seed, rank, step)
        return torch.rand(2).tolist()

    draws = {str(draw(seed, rank, step)) for seed in range(3) for rank in range(4) for step in range(50)}
    assert len(draws) == 600 and draw(1, 2, 3) == draw(1, 2, 3)
