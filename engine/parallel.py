"""How a network is spread over processes: DDP, FSDP2 and HSDP, compilation, activation checkpointing."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from engine.world import World


class Scale(Protocol):
    """The part of a loop config that says how a network is spread; see `engine.plan.TrainLoopConfig`."""

    strategy: str
    precision: str
    activation_checkpointing: bool
    compile: bool


def parallel_blocks(module: nn.Module, *units: str) -> list[nn.Module]:
    """Modules with an attribute `parallel_unit`: `shard` (sharded, compiled, recomputed one by one) or `recompute`."""
    return [m for m in module.modules() if getattr(m, "parallel_unit", None) in (units or ("shard", "recompute"))]


def is_sharded(world: World, scale: Scale | None) -> bool:
    """Whether networks are cut over the processes; in a world of one there is nothing to cut."""
    return scale is not None and scale.strategy != "ddp" and world.size > 1


def build_device(world: World, scale: Scale) -> AbstractContextManager:
    """Where to build a network: one to be sharded has values on the first rank only; `parallelize` hands them out."""
    return torch.device("meta") if is_sharded(world, scale) and world.rank > 0 else nullcontext()


def _shard(module: nn.Module, world: World, scale: Scale, mesh: DeviceMesh) -> None:
    """Cuts the parameters of each block, and the rest as one group, in place (FSDP2); between passes all are shards.

    Only blocks are cast to bf16: convolutions, tables, quantizer and codebook stay fp32 (under autocast).
    """
    values = module.state_dict() if world.is_main else {}
    cast = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = cast if scale.precision == "bf16" else MixedPrecisionPolicy()
    for block in parallel_blocks(module, "shard"):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for name in getattr(module, "forward_methods", ()):
        register_fsdp_forward_method(module, name)
    if not world.is_main:
        module.to_empty(device=world.device)
    set_model_state_dict(module, values, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    for buffer in module.buffers():  # also those that are in no state dict
        dist.broadcast(buffer, src=0)


def parallelize(
    module: nn.Module, ema: nn.Module | None, world: World, scale: Scale | None, find_unused: bool = False
) -> nn.Module:
    """`module` as it is called in training: compiled, checkpointed and spread as `scale` says, or wrapped by DDP; in a
    world of one the module itself. A sharded one is changed in place, and `ema` alike.
    """
    for block in (parallel_blocks(module, "shard") or [module]) if scale is not None and scale.compile else ():
        block.forward = torch.compile(block.forward)
    for block in parallel_blocks(module) if scale is not None and scale.activation_checkpointing else ():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if is_sharded(world, scale):
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world.size)) if scale.strategy == "hsdp" else world.size
        shape, names = ((world.size // local, local), ("machine", "shard")) if local < world.size else ((local,), None)
        mesh = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
        for network in (module, ema) if ema is not None else (module,):
            _shard(network, world, scale, mesh)
        return module
    if world.size == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[world.local_rank] if world.device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,
    )


def gradient_sync(network: nn.Module, last: bool) -> AbstractContextManager:
    """DDP exchanges gradients at the `last` micro-batch; shards at each, but between machines (hsdp) at the last."""
    if isinstance(network, FSDPModule):
        network.set_requires_all_reduce(last)
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full `tensor`, equal on all ranks, sharded as `like` is."""
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor
