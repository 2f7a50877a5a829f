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

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.config import ConfigError


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

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

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
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item() > 0)


def gather_rows(tensor: Tensor) -> Tensor:
    """Tensors of all ranks, equal in shape, along dimension 0; the tensor itself where no process group is running."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    out = tensor.new_empty((dist.get_world_size() * tensor.shape[0], *tensor.shape[1:]))
    dist.all_gather_into_tensor(out, tensor.contiguous())
    return out


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; `auto` takes a GPU where there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not known; choose one of: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda', but no CUDA device is visible; use device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
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
def distributed_world(device: str = "auto", deterministic: bool = False) -> Iterator[World]:
    """The world of this process: joins the group that torchrun describes, and leaves it at the end. `deterministic`
    allows only algorithms whose bits repeat.
    """
    with _reproducible(deterministic), _join(device) as world:
        yield world


@contextmanager
def _join(device: str) -> Iterator[World]:
    if dist.is_initialized():  # the caller owns the group
        rank, size = dist.get_rank(), dist.get_world_size()
        yield World(rank, size, rank, pick_device(device, rank))
        return
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen_device = pick_device(device, local_rank)
    if size == 1:
        yield World(0, 1, 0, chosen_device)
        return
    if chosen_device.type == "cpu":
        if os.environ.get("MASTER_ADDR") in ("localhost", "127.0.0.1"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if "OMP_NUM_THREADS" not in os.environ:
            cores, local_size = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
            torch.set_num_threads(max(1, cores // local_size))
    dist.init_process_group("nccl" if chosen_device.type == "cuda" else "gloo", timeout=timedelta(hours=1))
    try:
        yield World(rank, size, local_rank, chosen_device)
    finally:
        dist.destroy_process_group()


def synchronize(device: torch.device) -> None:
    """Waits for the work of a GPU, so that a clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parallelize(module: nn.Module, world: World, find_unused: bool = False) -> nn.Module:
    """`module` wrapped for data-parallel training; itself in a world of one."""
    if world.size == 1:
        return module
    return nn.parallel.DistributedDataParallel(
        module,
        device_ids=[world.local_rank] if world.device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=find_unused,
        gradient_as_bucket_view=True,
    )


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
