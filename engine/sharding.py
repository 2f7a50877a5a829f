"""Parameters divided over the processes of a run: FSDP2, inside of machines or over all of them.

Only `engine.parallel` imports this module, and only for a network that is sharded: FSDP2 and DTensor take half a second
to import.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from engine.parallel import ParallelConfig, parallel_blocks
from engine.torch_versions import average_gradients_on_cpu, release_root_after_forward, show_dataclasses_to_fsdp
from engine.world import World


def shard(modules: Sequence[nn.Module], world: World, parallel: ParallelConfig) -> None:
    """Divides the parameters of each of `modules` over the processes, in place; all ranks call it together."""
    mesh = _device_mesh(world, parallel)
    for module in modules:
        _shard_one(module, world, parallel, mesh)


def _device_mesh(world: World, parallel: ParallelConfig) -> DeviceMesh:
    """The mesh to shard over: all processes (fsdp), or those of each machine (hsdp)."""
    num_sharing = world.size
    if parallel.strategy == "hsdp":
        num_sharing = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if num_sharing < world.size:
        shape = (world.size // num_sharing, num_sharing)
        return init_device_mesh(world.device.type, shape, mesh_dim_names=("machine", "shard"))
    return init_device_mesh(world.device.type, (num_sharing,))


def _shard_one(module: nn.Module, world: World, parallel: ParallelConfig, mesh: DeviceMesh) -> None:
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
    blocks = parallel_blocks(module, "shard")
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    average_gradients_on_cpu(module, world.device)

    # FSDP gathers around `forward` only; methods that are called from outside must be named to it.
    for part in (module, *blocks):
        for name in getattr(part, "forward_methods", ()):
            register_fsdp_forward_method(part, name)

    # Every rank gets its shards, and all buffers, also those that are in no state dict.
    if not world.is_main:
        module.to_empty(device=world.device)
    set_model_state_dict(module, values, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    release_root_after_forward(module)
    for buffer in module.buffers():
        dist.broadcast(buffer, src=0)
