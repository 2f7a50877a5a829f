"""How a network is spread over processes: DDP, FSDP2 and HSDP, compiled and checkpointed.

A network marks its repeated blocks by an attribute `parallel_unit`:

    "shard"       sharded, compiled and recomputed one by one (transformer blocks)
    "recompute"   recomputed only (convolutional blocks, whose parameters are sharded with the rest)

`parallelize` then does what the loop config asks for; the network itself knows nothing of processes.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from engine.devices import is_gpu
from engine.torch_versions import (
    average_gradients_on_cpu,
    release_root_after_forward,
    show_dataclasses_to_fsdp,
    unsynced_buffers,
)
from engine.world import World


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
        mesh = _device_mesh(world, parallel)
        _shard(module, world, parallel, mesh)
        if ema is not None:
            _shard(ema, world, parallel, mesh)
        return module
    if world.size == 1:
        return module
    return _data_parallel(module, world, find_unused)


def _compile_blocks(module: nn.Module) -> None:
    """Compiles each block that can be sharded, or the whole network where it has none."""
    for block in parallel_blocks(module, "shard") or [module]:
        block.forward = torch.compile(block.forward)


def _checkpoint_blocks(module: nn.Module) -> None:
    """Makes each block keep only its input for the backward pass, which computes the inside again."""
    for block in parallel_blocks(module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _device_mesh(world: World, parallel: ParallelConfig) -> DeviceMesh:
    """The mesh to shard over: all processes (fsdp), or those of each machine (hsdp)."""
    num_sharing = world.size
    if parallel.strategy == "hsdp":
        num_sharing = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if num_sharing < world.size:
        shape = (world.size // num_sharing, num_sharing)
        return init_device_mesh(world.device.type, shape, mesh_dim_names=("machine", "shard"))
    return init_device_mesh(world.device.type, (num_sharing,))


def _shard(module: nn.Module, world: World, parallel: ParallelConfig, mesh: DeviceMesh) -> None:
    """Divides the parameters of each block, and all others as one group, in place (FSDP2).

    Between passes every process holds its shards only. Only blocks are cast to bf16: convolutions, tables, quantizer
    and codebook stay fp32 (under autocast).
    """
    # The values of the first rank are the network; they are taken before the parameters become shards.
    values = module.state_dict() if world.is_main else {}

    # Blocks are gathered one at a time, the rest of the network at once.
    policy = MixedPrecisionPolicy()
    if parallel.precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    show_dataclasses_to_fsdp(module)
    for block in parallel_blocks(module, "shard"):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    average_gradients_on_cpu(module, world.device)

    # FSDP gathers around `forward` only; methods that are called from outside must be named to it.
    for name in getattr(module, "forward_methods", ()):
        register_fsdp_forward_method(module, name)

    # Every rank gets its shards, and all buffers, also those that are in no state dict.
    if not world.is_main:
        module.to_empty(device=world.device)
    set_model_state_dict(module, values, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    release_root_after_forward(module)
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)


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
    if isinstance(network, FSDPModule):
        network.set_requires_all_reduce(last)
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shards a full `tensor`, equal on all ranks, as `like` is sharded, if it is."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
