"""The processes of a run: rank, size, collectives.

One process without torchrun is a world of size 1 and needs no process group. Under torchrun the group is NCCL on GPUs
and gloo on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor

from engine.devices import pick_device, reproducible_algorithms

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
    with reproducible_algorithms(deterministic), _join(device, tf32) as world:
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
