"""DDP, FSDP2 and HSDP are one training: the same curves, norms, averages and files, also across restarts."""

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from ranks import on_ranks
from test_exactness import EVERYWHERE, EXACT, assert_close_runs, train_gpt, train_tokenizer
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import tokenizer.train
from autoregressive.models.gpt import GPT, GPTConfig
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import find_weights, load_strict, num_parameters, read_weights
from engine.config import load_config
from engine.loop import TrainLoopConfig
from engine.optim import OptimConfig
from engine.parallel import build_device, parallel_blocks, parallelize
from engine.run_log import read_metrics
from engine.trained_model import TrainedModel
from engine.world import World, gather_rows
from tokenizer.quantizers.fsq import FSQ, FSQConfig
from tokenizer.training.checks import validate
from tokenizer.training.config import TokenizerTrainConfig

NO_DROPOUT = [
    "model.gpt.token_dropout=0",
    "model.gpt.residual_dropout=0",
    "model.gpt.class_dropout_prob=0.5",
    "ema_decay=0.9",
]
WAYS = {  # name -> (processes, overrides); hsdp is two machines of two processes
    "ddp": (2, []),
    "fsdp, micro-batches, recomputation": (
        2,
        ["loop.strategy=fsdp", "loop.grad_accum=2", "loop.async_save=true", "loop.activation_checkpointing=true"],
    ),
    "hsdp and micro-batches": (4, ["loop.strategy=hsdp", "loop.grad_accum=2"]),
}


SAVED = ["loop.save_every=2", "loop.keep_last=9"]


@dataclass
class Job:
    """A training, and runs of it."""

    run: Callable[..., None]  # (world, run_dir, *overrides)
    one: Path  # a run in one process
    sharded: Path  # a run as FSDP2 x2 whose checkpoints are all there
    largest: int  # processes


@pytest.fixture(scope="module", params=["tokenizer", "gpt"])
def job(request, tmp_path_factory, image_folder, world):
    """The runs are read only."""
    if request.param == "gpt":
        given, entry = request.getfixturevalue("codes"), train_gpt
        options = [*NO_DROPOUT, *EVERYWHERE]
    else:
        given, entry = (image_folder,), train_tokenizer
        # GAN, EMA, restarts, warm-up, k-means, shortcut. A discriminator that starts alone leaves k-means no latents;
        # scales are those of another tokenizer.
        apart = {"warm start of the discriminator", "scales"}
        together = [options for name, options in EXACT.items() if name not in apart]
        options = [*itertools.chain.from_iterable(together), *EVERYWHERE]

    # Regression: with 5 images two processes have 2 and 1 batches, and shards waited for the one without work for ever.
    options.append("validation.num_images=5")

    def run(world, run_dir, *overrides):
        entry(world, run_dir, *given, *options, *overrides)

    root = tmp_path_factory.mktemp("job")
    run(world, root / "one")
    on_ranks(2, root / "a", run, root / "sharded", *SAVED, "loop.strategy=fsdp")
    # Shards of a tokenizer on four processes are those of hsdp.
    return Job(run, root / "one", root / "sharded", largest=4 if request.param == "gpt" else 2)


def in_two_machines(world: World, function, *args) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    function(world, *args)


def assert_same_training(one: Path, other: Path) -> None:
    """Loss terms, gradient norms, validation, weights and averages of 6 steps agree."""
    assert_close_runs(one, other)
    files = [sorted(p.name for p in checkpoint_folders(r)[-1].glob("*.safetensors")) for r in (one, other)]
    assert files[0] == files[1]
    for name in files[0]:
        a, b = (read_weights(checkpoint_folders(r)[-1] / name) for r in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_training_does_not_depend_on_the_strategy(way, job, tmp_path):
    size, overrides = WAYS[way]
    function = (in_two_machines, job.run) if "hsdp" in way else (job.run,)
    on_ranks(size, tmp_path / "a", *function, tmp_path / "run", *overrides)
    assert_same_training(job.one, tmp_path / "run")


def test_shards_are_the_same_training(job):
    assert_same_training(job.one, job.sharded)


def test_a_run_may_go_on_as_anything(job, tmp_path, world):
    """Two steps as FSDP2 x2, two in one process, two as FSDP2, on more processes where that is quick."""
    run = shutil.copytree(job.sharded, tmp_path / "run")

    def forget(*steps):
        for step in steps:
            shutil.rmtree(run / "checkpoints" / f"step_{step:08d}")

    forget(4, 6)
    job.run(world, run, *SAVED)
    forget(6)
    on_ranks(job.largest, tmp_path / "b", job.run, run, *SAVED, "loop.strategy=fsdp")
    log = (run / "log.txt").read_text()
    assert "resumed from step 2 of 6" in log and "resumed from step 4 of 6" in log
    assert_close_runs(job.one, run)


def test_one_process_has_nothing_to_shard(tmp_path, codes, world):
    """strategy=fsdp in a world of one is the plain network, bit for bit; recomputation changes no bit either."""
    for name, overrides in (("plain", []), ("other", ["strategy=fsdp", "activation_checkpointing=true"])):
        train_gpt(world, tmp_path / name, *codes, *[f"loop.{o}" for o in overrides])
    a, b = (read_weights(find_weights(tmp_path / n, "model", "run").path) for n in ("plain", "other"))
    assert all(torch.equal(a[key], b[key]) for key in a)


# ---------------------------------------------------------------------------------------------- the updater
FSDP = TrainLoopConfig(strategy="fsdp")


def small_gpt(world: World, scale=FSDP, steps: int = 3) -> tuple[TrainedModel, list[torch.Tensor]]:
    """A GPT with averages after a few updates on a batch of 4, and the gradient norms."""
    torch.manual_seed(0)
    config = GPTConfig(
        width=16, layers=2, heads=2, vocab_size=15, num_tokens=4, num_classes=3, token_dropout=0, residual_dropout=0
    )
    with build_device(world, scale):
        network = GPT(config)
    optim = OptimConfig(lr=1e-2, eps=1e-3, max_grad_norm=0.1)
    updater = TrainedModel(network, optim, total_steps=9, world=world, ema_decay=0.9, parallel=scale)
    norms = []
    for step in range(steps):
        tokens = torch.randint(15, (4, 4), generator=torch.Generator().manual_seed(step))
        own = tokens[world.rank * 4 // world.size : (world.rank + 1) * 4 // world.size].to(world.device)
        logits = updater.wrapped(own[:, 0] % 3, own)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), own.flatten()).backward()
        norms.append(updater.step(step, {})["grad_norm"])
    return updater, norms


def whole(tree, prefix="") -> dict:
    """Names and full tensors of a training state."""
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in whole(value, f"{prefix}.{name}").items()}
    return {prefix: tree.full_tensor() if isinstance(tree, DTensor) else tree}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] for k, v in a.items()
    )


def store_of(folder, world, **options) -> CheckpointStore:
    return CheckpointStore(folder, world, GPTConfig(), **options)


def hand_out(world: World) -> None:
    """Regression: buffers that are in no state dict were arbitrary memory on all ranks but the first; those of FSQ."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 2), FSQ(FSQConfig(levels=[4, 3])))

    with build_device(world, FSDP):
        network = made()
    assert parallelize(network, None, world, FSDP) is network and isinstance(network[0].weight, DTensor)
    for (name, buffer), (_, expected) in zip(network.named_buffers(), made().named_buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert not network.state_dict().keys() >= dict(network.named_buffers()).keys()


def save_shards(world: World, folder) -> None:
    """The state of rank 0, put together, beside a checkpoint of both; norms are equal on all ranks."""
    hand_out(world)
    updater, norms = small_gpt(world)
    assert isinstance(updater.wrapped, FSDPModule) and isinstance(updater.ema, FSDPModule)
    for network in (updater.module, updater.ema):
        assert all(isinstance(p, DTensor) for p in network.parameters()), "between passes all parameters are shards"
    everywhere = gather_rows(torch.stack(norms)[None])
    assert torch.equal(everywhere[0], everywhere[1])
    store_of(folder / "run", world).save(3, {"gpt": updater}, updater.weights)
    state = whole(updater.state_dict())
    if world.is_main:
        torch.save({"norms": norms, "state": state}, folder / "state.pt")


def load_shards(world: World, folder) -> None:
    """Other weights, replaced by those of the checkpoint; then the weights alone, by another way."""
    updater, _ = small_gpt(world, steps=1)
    assert store_of(folder / "run", world).load_latest({"gpt": updater}) == 3
    expected = torch.load(folder / "state.pt", weights_only=True)["state"]
    assert same(whole(updater.state_dict()), expected)
    other, _ = small_gpt(world, steps=0)
    load_strict(other.module, read_weights(checkpoint_folders(folder / "run")[-1] / "model.safetensors"), "file")
    model = {k: v for k, v in expected.items() if k.startswith(".model")}
    assert same({k: v for k, v in whole(other.state_dict()).items() if k.startswith(".model")}, model)


def test_a_sharded_checkpoint_loads_anywhere_bit_for_bit(tmp_path, world):
    """Saved by FSDP2 x2, read by one process, by FSDP2 x2 and x4; norms and names are those of one process."""
    on_ranks(2, tmp_path, save_shards, tmp_path)
    load_shards(world, tmp_path)
    for size in (2, 4):
        on_ranks(size, tmp_path / str(size), load_shards, tmp_path)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    updater, norms = small_gpt(world, scale=None)
    torch.testing.assert_close(torch.stack(saved["norms"]), torch.stack(norms), rtol=1e-5, atol=0)
    assert whole(updater.state_dict()).keys() == saved["state"].keys()
    files = {k: read_weights(checkpoint_folders(tmp_path / "run")[-1] / f"{k}.safetensors") for k in ("model", "ema")}
    for kind, file in files.items():
        assert same(whole(file, f".{kind}"), {k: v for k, v in saved["state"].items() if k.startswith(f".{kind}.")})


def test_half_precision_shards_train_and_sample(tmp_path, codes):
    """bf16 blocks under FSDP2 follow bf16 under DDP; every rank takes part in the sample grids of a sharded GPT."""
    options = [*NO_DROPOUT, *EVERYWHERE, "loop.precision=bf16", "validation.preview_classes=2"]
    for strategy in ("ddp", "fsdp"):
        run = tmp_path / strategy
        on_ranks(2, tmp_path / f"of {strategy}", train_gpt, run, *codes, *options, f"loop.strategy={strategy}")
    a, b = ([r["loss"] for r in read_metrics(tmp_path / s) if "loss" in r] for s in ("ddp", "fsdp"))
    assert len(a) == 6 and a == pytest.approx(b, rel=1e-2)
    assert len(list((tmp_path / "fsdp" / "samples").glob("*.png"))) == 4, "val and val_ema at steps 3 and 6"
    weights = read_weights(find_weights(tmp_path / "fsdp", "ema", "run").path)
    assert all(value.dtype == torch.float32 for value in weights.values())


# ---------------------------------------------------------------------------------------------- XL-XXL
def narrow_xlxxl(images, run_dir, blocks: tuple[int, int], *more: str) -> TokenizerTrainConfig:
    """The 2.9B recipe 16 channels wide, on 8-pixel images, with that many blocks in encoder and decoder; without the
    entropy loss, which micro-batches change, and with a limit that clips every gradient.
    """
    hybrid = "model.hybrid"
    overrides = [
        *tiny.folder_data(images),
        f"{hybrid}.encoder={{size: null, width: 16, layers: {blocks[0]}, heads: 2}}",
        f"{hybrid}.decoder={{size: null, width: 16, layers: {blocks[1]}, heads: 2}}",
        f"{hybrid}.num_tokens=4",
        f"{hybrid}.z_channels=8",
        f"{hybrid}.semantic_layer=null",
        f"{hybrid}.cnn={{base_channels: 4, channel_multipliers: [1, 2, 2], norm_groups: 1}}",
        "model.quantizer.vq.codebook_size=32",
        "loss.perceptual_weight=0",
        "loss.entropy_weight=0",
        "semantic.teacher=''",
        "data={image_size: 8, global_batch_size: 4, num_workers: 0}",
        "validation={num_images: 2, batch_size: 1}",
        "optim={warmup_steps: 0, lr: 1e-3, eps: 1e-3, max_grad_norm: 0.05}",
        "loss.discriminator={start_step: 1, patchgan: {base_channels: 4, num_layers: 1, norm: none}}",
        "loop={steps: 2, log_every: 1, precision: fp32, device: cpu}",
        f"loop.run_dir={run_dir}",
        *more,
    ]
    return load_config(TokenizerTrainConfig, ["configs/vq/VQ_XLXXL256.yaml"], overrides)


def train_narrow(world: World, images, run_dir, blocks: tuple[int, int], *more: str) -> None:
    """Trains in shards, and looks at their groups: one for each block, and one for the rest."""
    real, built = tokenizer.train.build_task, []

    def build_task(*args):
        built.append(real(*args))
        return built[-1]

    tokenizer.train.build_task = build_task
    tokenizer.train.train(narrow_xlxxl(images, run_dir, blocks, "loop.strategy=fsdp", *more), world)
    network = built[0].tokenizer.module
    units = [m for m in network.modules() if isinstance(m, FSDPModule)]
    assert units == [network, *network.query_encoder.transformer, *network.query_decoder.transformer]
    assert len(units) == 1 + sum(blocks)
    groups = [m._get_fsdp_state()._fsdp_param_group.fsdp_params for m in units]
    assert sum(map(len, groups)) == len(list(network.parameters()))
    assert network.quantizer in {p._module_info.module for p in groups[0]}, "the codebook is in the group never cast"


def test_xlxxl_trains_in_shards(tmp_path, image_folder, monkeypatch, world):
    """With fewer blocks, two steps of two micro-batches, clipped by the norm of all shards, with the discriminator, are
    those of one process. The groups are in the order of the forward pass.
    """
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    tokenizer.train.train(narrow_xlxxl(image_folder, tmp_path / "one", (3, 4)), world)
    on_ranks(2, tmp_path / "a", train_narrow, image_folder, tmp_path / "two", (3, 4), "loop.grad_accum=2")
    two = read_metrics(tmp_path / "two")
    assert all(r["grad_norm"] > 0.05 and r["skipped_steps"] == 0 for r in two[:2]) and two[1]["discriminator"] > 0
    assert_close_runs(tmp_path / "one", tmp_path / "two", count=3)


def test_xlxxl_is_built_without_memory(monkeypatch):
    """The real one on the meta device: 84 blocks hold 97 % of its 2.9B parameters."""
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    model = validate(load_config(TokenizerTrainConfig, ["configs/vq/VQ_XLXXL256.yaml"]))
    blocks = parallel_blocks(model, "shard")
    assert len(blocks) == 36 + 48 and num_parameters(model) == 2_893_970_443
    assert all(p.is_meta for p in model.parameters())
    assert sum(map(num_parameters, blocks)) / num_parameters(model) > 0.95


# ---------------------------------------------------------------------------------------------- slow, or with a GPU
@pytest.mark.slow
def test_xlxxl_trains_in_shards_at_its_depth(tmp_path, image_folder, monkeypatch):
    """85 groups: the rest, and 36 + 48 blocks."""
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    on_ranks(2, tmp_path / "a", train_narrow, image_folder, tmp_path / "deep", (36, 48), "loop.steps=1")
    (record,) = [record for record in read_metrics(tmp_path / "deep") if "loss" in record]
    assert record["skipped_steps"] == 0 and record["discriminator"] > 0
    assert read_manifest(checkpoint_folders(tmp_path / "deep")[-1])["step"] == 1


@pytest.mark.slow
def test_compiled_blocks_train_alike(tmp_path, codes, world):
    options = [*NO_DROPOUT, *EVERYWHERE]
    train_gpt(world, tmp_path / "plain", *codes, *options)
    train_gpt(world, tmp_path / "compiled", *codes, *options, "loop.compile=true", "loop.activation_checkpointing=true")
    assert_close_runs(tmp_path / "plain", tmp_path / "compiled", rel=1e-4)


def one_gpu_rank(rank: int, folder, results) -> None:
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{folder}/nccl", rank=0, world_size=1)
    try:
        world = World(0, 1, 0, torch.device("cuda", 0))
        updater, norms = small_gpt(world, scale=TrainLoopConfig(precision="bf16", activation_checkpointing=True))
        assert all(torch.isfinite(n) for n in norms)
        updater.weights()
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_a_gpu_takes_part(tmp_path):
    torch.multiprocessing.start_processes(one_gpu_rank, args=(tmp_path, None), nprocs=1, start_method="spawn")
