"""How a network is spread over processes: DDP, FSDP2 and HSDP, compiled and checkpointed.

A network marks its repeated blocks by an attribute `parallel_unit`:

    "shard"       sharded, compiled and recomputed one by one (transformer blocks)
    "recompute"   recomputed only (convolutional blocks, whose parameters are sharded with the rest)

`parallelize` then does what the loop config asks for; the network itself knows nothing of processes.

Sharding itself is in `engine.sharding`, which is imported only where a network is sharded: its parts of torch take half
a second, and commands such as `--help` and `--dry-run` should not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from engine.devices import is_gpu
from engine.torch_versions import unsynced_buffers
from engine.world import World

P = ParamSpec("P")
R = TypeVar("R")


class ParallelConfig(Protocol):
    """The part of a loop config that says how a network is spread; see `engine.loop.TrainLoopConfig`."""

    strategy: str
    precision: str
    activation_checkpointing: bool
    compile: bool


def parallel_blocks(module: nn.Module, *units: str) -> list[nn.Module]:
    """The blocks of `module` whose `parallel_unit` is one of `units`, by default of both kinds."""
    accepted = units or ("shard", "recompute")
    return [m for m in module.modules() if getattr(m, "parallel_unit", None) in accepted]


def is_sharded(world: World, parallel: ParallelConfig | None) -> bool:
    """Whether parameters are divided over the processes; in a world of one they never are."""
    return parallel is not None and parallel.strategy != "ddp" and world.size > 1


def build_device(world: World, parallel: ParallelConfig) -> AbstractContextManager:
    """The context to build a network in.

    Where it will be sharded, only the first rank computes initial values; the others build on the meta device and
    receive their shards from `parallelize`.
    """
    if is_sharded(world, parallel) and world.rank > 0:
        return torch.device("meta")
    return nullcontext()


def parallelize(
    module: nn.Module, ema: nn.Module | None, world: World, parallel: ParallelConfig | None, find_unused: bool = False
) -> nn.Module:
    """Applies compilation, activation checkpointing and the parallel strategy; all ranks call it together.

    Returns the module to call in training: DDP-wrapped, or `module` itself (FSDP shards it, and `ema`, in place).
    `find_unused` tells DDP that some parameters get no gradient in some steps.
    """
    if parallel is not None and parallel.compile:
        _compile_blocks(module)
    if parallel is not None and parallel.activation_checkpointing:
        _checkpoint_blocks(module)

    if is_sharded(world, parallel):
        from engine.sharding import shard  # see the module docstring

        shard([module] if ema is None else [module, ema], world, parallel)
        return module
    if world.size == 1:
        return module
    return _data_parallel(module, world, find_unused)


def _compile_blocks(module: nn.Module) -> None:
    """Compiles each block that can be sharded, or the whole network where it has none."""
    for block in parallel_blocks(module, "shard") or [module]:
        block.forward = torch.compile(block.forward)


def not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: `function` runs outside of compiled graphs, which would be compiled anew whenever its state changes.

    `torch.compiler.disable` does the same, but takes a second to import; here that is done by the first call.
    """
    return _disable_dynamo(function)


def _checkpoint_blocks(module: nn.Module) -> None:
    """Makes each block keep only its input for the backward pass, which computes the inside again."""
    for block in parallel_blocks(module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _data_parallel(module: nn.Module, world: World, find_unused: bool) -> nn.Module:
    """A copy per process, whose gradients are averaged (DDP)."""
    return DistributedDataParallel(
        module,
        device_ids=[world.local_rank] if is_gpu(world.device) else None,
        **unsynced_buffers(),
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,
    )


def gradient_sync(network: nn.Module, last: bool) -> AbstractContextManager:
    """The context of forward *and* backward of a micro-batch, the `last` of its step or not.

    DDP exchanges gradients at the last micro-batch. FSDP reduces them to shards at each, but between machines (hsdp)
    at the last only.
    """
    if hasattr(network, "set_requires_all_reduce"):  # FSDP2
        network.set_requires_all_reduce(last)
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


# ------------------------------------------------------------------------------------------------ sharded tensors
def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds a part of `tensor` only: whether it is a DTensor, whose class is slow to import."""
    return hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds, in the same storage; any other tensor as it is."""
    return tensor.to_local() if is_shard(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, which all ranks do at once; any other tensor as it is."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """Shards a full `tensor`, equal on all ranks, as `like` is sharded, if it is."""
    if not is_shard(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # see the module docstring

    return distribute_tensor(tensor, like.device_mesh, like.placements)
