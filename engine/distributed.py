"""Processes and devices. The only module that knows about CUDA and process groups.

One process without torchrun is a world of size 1 and needs no process group. Under torchrun the group is NCCL on GPUs
and gloo on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

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

from engine.config import ConfigError

TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class World:
    """The processes of this run. `rank` counts over all machines, `local_rank` on this one."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self, group: Any = None) -> None:
        if self.size > 1:
            dist.barrier(group)

    def side_group(self) -> Any:
        """All ranks, for collectives in a thread beside those of the training."""
        return dist.new_group(backend="gloo", timeout=TIMEOUT) if self.size > 1 else None

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all ranks (a new tensor)."""
        tensor = tensor.detach().clone()
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Scalars averaged over ranks, as Python floats: one synchronization for all of them."""
        if not scalars:
            return {}
        packed = torch.stack(
            [torch.as_tensor(v, device=self.device).detach().double().reshape(()) for v in scalars.values()]
        )
        return dict(zip(scalars, (self.sum(packed) / self.size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on one of them."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)).item() > 0)


def gather_rows(tensor: Tensor) -> Tensor:
    """Tensors of all ranks, equal in shape, along dimension 0; the tensor itself where no process group is running."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    out = tensor.new_empty((dist.get_world_size() * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather_into_tensor(out, tensor.contiguous())
    return out


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over all ranks, with gradients: data parallelism then averages to the gradient of the common loss."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    return torch.distributed.nn.functional.all_reduce(tensor) / dist.get_world_size()


def pick_device(name: str, local_rank: int = 0, tf32: bool = True) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; `auto` takes a GPU where there is one, with or without TF32."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not known; choose one of: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda', but no CUDA device is visible; use device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    return torch.device("cuda", local_rank)


@contextmanager
def _reproducible(enabled: bool) -> Iterator[None]:
    """Only algorithms that give the same bits in every run (docs/exactness.md); one without such a form is an error."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = before[1]


def device_facts(world: World) -> dict[str, str | int]:
    """What this rank computes on."""
    if world.device.type == "cpu":
        return {
            "type": "cpu",
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
    name, cudnn = torch.cuda.get_device_name(world.device), torch.backends.cudnn.version()
    visible = torch.cuda.device_count()
    return {"type": "cuda", "name": name, "cuda": torch.version.cuda, "cudnn": cudnn, "visible": visible}


@contextmanager
def distributed_world(device: str = "auto", deterministic: bool = False, tf32: bool = True) -> Iterator[World]:
    """The world of this process: joins the group that torchrun describes, and leaves it at the end. `deterministic`
    allows only algorithms whose bits repeat. Without `tf32` fp32 is fp32 on a GPU too: for codes and measurements.
    """
    with _reproducible(deterministic), _join(device, tf32) as world:
        yield world


@contextmanager
def _join(device: str, tf32: bool) -> Iterator[World]:
    if dist.is_initialized():  # the caller owns the group
        rank, size = dist.get_rank(), dist.get_world_size()
        yield World(rank, size, rank, pick_device(device, rank, tf32))
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen_device = pick_device(device, local_rank, tf32)
    if size == 1:
        yield World(0, 1, 0, chosen_device)
        return
    if chosen_device.type == "cpu":
        if os.environ.get("MASTER_ADDR") in ("localhost", "127.0.0.1"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if "OMP_NUM_THREADS" not in os.environ:
            cores, local_size = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
            torch.set_num_threads(max(1, cores // local_size))
    dist.init_process_group("nccl" if chosen_device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(rank, size, local_rank, chosen_device)
    finally:
        dist.destroy_process_group()


def synchronize(device: torch.device) -> None:
    """Waits for the work of a GPU, so that a clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Scale(Protocol):
    """The part of a loop config that says how a network is spread; see `engine.plan.ScaledLoopConfig`."""

    strategy: str
    precision: str
    activation_checkpointing: bool
    compile: bool


def blocks_of(module: nn.Module, *units: str) -> list[nn.Module]:
    """Modules with an attribute `scale_unit`: `shard` (sharded, compiled, recomputed one by one) or `recompute`."""
    return [m for m in module.modules() if getattr(m, "scale_unit", None) in (units or ("shard", "recompute"))]


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
    for block in blocks_of(module, "shard"):
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
    for block in (blocks_of(module, "shard") or [module]) if scale is not None and scale.compile else ():
        block.forward = torch.compile(block.forward)
    for block in blocks_of(module) if scale is not None and scale.activation_checkpointing else ():
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


def exchange(network: nn.Module, last: bool) -> AbstractContextManager:
    """DDP exchanges gradients at the `last` micro-batch; shards at each, but between machines (hsdp) at the last."""
    if isinstance(network, FSDPModule):
        network.set_requires_all_reduce(last)
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full `tensor`, equal on all ranks, sharded as `like` is."""
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast region of `precision`: `fp32` or `bf16`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """An fp32 island: neither autocast nor TF32. Quantizers, entropies, perceptual and cosine losses, statistics."""
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
