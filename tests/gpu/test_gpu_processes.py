"""NCCL and what spreads a network over GPUs, with one process: DDP and FSDP2 train as the plain network does."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.token_by_token import next_token_loss
from engine.loop import TrainLoopConfig
from engine.optim import OptimConfig
from engine.parallel import _data_parallel, gradient_sync
from engine.trained_model import TrainedModel
from engine.world import World, distributed_world, gather_rows, mean_over_ranks

pytestmark = pytest.mark.gpu

CONFIG = GPTConfig(
    width=64, layers=2, heads=2, vocab_size=32, num_tokens=16, num_classes=3, token_dropout=0, residual_dropout=0
)


def in_a_group(rank: int, folder: str, check) -> None:
    """Runs `check(world)` in a process that is a group of NCCL by itself."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group("nccl", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        with distributed_world("cuda", tf32=False) as world:
            check(world)
    finally:
        dist.destroy_process_group()


def run(check, tmp_path) -> None:
    mp.start_processes(in_a_group, args=(str(tmp_path), check), nprocs=1, start_method="spawn")


def network(world: World) -> GPT:
    torch.manual_seed(0)
    gpt = GPT(CONFIG).to(world.device)
    nn.init.normal_(gpt.output.weight, std=0.1)
    return gpt


def batch(world: World) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(32, (8, 16), generator=generator)
    return (tokens[:, 0] % 3).to(world.device), tokens.to(world.device)


def gradients_of(wrapped: nn.Module, world: World) -> dict[str, torch.Tensor]:
    """Whole gradients of one pass over a batch, under the names of the plain network."""
    labels, tokens = batch(world)
    with gradient_sync(wrapped, last=True):
        next_token_loss(wrapped(labels, tokens), tokens).backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in wrapped.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()}


def assert_near(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (actual[name].float() - gradient).norm() <= tolerance * gradient.norm() + 1e-7, name


# ------------------------------------------------------------------------------------------------ checks
def collectives(world: World) -> None:
    """Of the project, and those that it builds on."""
    rows = torch.arange(6.0, device=world.device).view(3, 2)
    assert torch.equal(gather_rows(rows), rows) and torch.equal(mean_over_ranks(rows), rows)
    assert torch.equal(world.sum(rows), rows) and world.any(True) and not world.any(False)
    total = rows.clone()
    dist.all_reduce(total)
    dist.broadcast(total, src=0)
    gathered = torch.empty_like(total)
    dist.all_gather_into_tensor(gathered, total)
    assert torch.equal(gathered, rows)
    dist.barrier()


def data_parallel(world: World) -> None:
    """DDP, its bucket views and its buffers."""
    expected = gradients_of(network(world), world)
    assert_near(gradients_of(_data_parallel(network(world), world, find_unused=False), world), expected, 1e-6)


def sharded(world: World) -> None:
    """FSDP2 in float32 and in bf16: gradients, and the weights of the first process in the shards."""
    from engine.sharding import shard

    expected = gradients_of(network(world), world)
    weights = {name: p.detach().clone() for name, p in network(world).named_parameters()}
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.05)):
        gpt = network(world)
        shard([gpt], world, TrainLoopConfig(strategy="fsdp", precision=precision))
        assert all(torch.equal(p.full_tensor(), weights[name]) for name, p in gpt.named_parameters())
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            assert_near(gradients_of(gpt, world), expected, tolerance)


def updates(world: World) -> None:
    """A few updates in bf16 with recomputed blocks, averages and clipping; the state can be taken."""
    torch.manual_seed(0)
    loop = TrainLoopConfig(precision="bf16", activation_checkpointing=True)
    optim = OptimConfig(lr=1e-2, max_grad_norm=0.1)
    trained = TrainedModel(GPT(CONFIG), optim, total_steps=9, world=world, ema_decay=0.9, parallel=loop)
    labels, tokens = batch(world)
    losses = []
    for step in range(4):
        with torch.autocast("cuda", torch.bfloat16):
            loss = next_token_loss(trained.wrapped(labels, tokens), tokens)
        loss.backward()
        assert torch.isfinite(trained.step(step, {"loss": loss.detach()})["grad_norm"])
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(tensor.device.type == "cpu" for tensor in trained.weights()["ema"].values())


@pytest.mark.parametrize("check", [collectives, data_parallel, sharded, updates])
def test_with_nccl(check, tmp_path):
    run(check, tmp_path)
