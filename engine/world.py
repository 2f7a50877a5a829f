"""The processes of a run: rank, size, and the few collectives that the code needs.

An entry opens its world once and passes it down:

    with distributed_world(config.loop.device) as world:
        total = world.sum(losses)

One process without torchrun is a world of size 1 and needs no process group. Under torchrun the group is NCCL on GPUs
and gloo on CPUs. Everything above this module works on any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional
from torch import Tensor

from engine.cores import usable_cores
from engine.devices import device_line, is_gpu, measured_convolutions, pick_device, reproducible_algorithms
from engine.messages import logger
from engine.time_limits import collective_timeout
from engine.torch_versions import all_gather_rows

MAX_FAILURE = 2000  # bytes of a failure that other processes are told


@dataclass(frozen=True)
class World:
    """The processes of this run, as seen by one of them."""

    rank: int  # number of this process, over all machines; 0 is the main process
    size: int  # number of processes
    local_rank: int  # number of this process on its machine
    device: torch.device  # where this process computes
    summary: str = field(default="", kw_only=True)  # what the processes compute on, in one line for people

    @property
    def is_main(self) -> bool:
        """True on the process that writes files and logs."""
        return self.rank == 0

    def barrier(self, group: Any = None) -> None:
        """Waits until every rank has arrived."""
        if self.size > 1:
            dist.barrier(group)

    def main_failure(self, failure: str | None, group: Any = None) -> str | None:
        """Tells every rank how the main process failed; None if it did not. All ranks wait for the main process.

        The main process gives its `failure`; what other ranks give does not count.
        """
        if self.size == 1:
            return failure
        text = (failure or "").encode()[:MAX_FAILURE]
        on_cpu = group is not None or not is_gpu(self.device)
        message = torch.zeros(MAX_FAILURE, dtype=torch.uint8, device="cpu" if on_cpu else self.device)
        message[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        dist.broadcast(message, src=0, group=group)
        return bytes(message.tolist()).rstrip(b"\0").decode(errors="replace") or None

    def side_group(self) -> Any:
        """A group of all ranks for collectives in a thread beside the training; None in a world of one."""
        return dist.new_group(backend="gloo", timeout=collective_timeout()) if self.size > 1 else None

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` over all ranks; returns a new tensor."""
        total = tensor.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Concatenates the tensors of all ranks along dimension 0, in the order of the ranks; they have one shape."""
        return tensor if self.size == 1 else gather_rows(tensor)

    def mean(self, scalars: Mapping[str, Tensor]) -> dict[str, float]:
        """Averages scalars over all ranks and returns Python floats.

        They are packed into one float64 vector, so that the GPU is waited for once.
        """
        if not scalars:
            return {}
        packed = torch.stack(
            [torch.as_tensor(v, device=self.device).detach().double().reshape(()) for v in scalars.values()]
        )
        means = (self.sum(packed) / self.size).tolist()
        return dict(zip(scalars, means, strict=True))

    def any(self, flag: bool) -> bool:
        """Returns True on every rank if `flag` is true on at least one of them."""
        if self.size == 1:
            return flag
        return self.sum(torch.tensor(float(flag), device=self.device)).item() > 0


@dataclass(frozen=True)
class ThreadChoice:
    """How many threads a process takes on a CPU, and for people why, where that is not plain."""

    count: int
    reason: str = ""


def gather_rows(tensor: Tensor) -> Tensor:
    """Concatenates the tensors of all ranks along dimension 0; they must have one shape.

    Without a process group it returns the tensor itself.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    gathered = tensor.new_empty((dist.get_world_size() * tensor.shape[0], *tensor.shape[1:]))
    all_gather_rows(gathered, tensor.contiguous())
    return gathered


def rank_and_size() -> tuple[int, int]:
    """The number of this process and how many there are; (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sums over all ranks, without a gradient: the same bits on all of them.

    Without a process group it returns the tensor itself.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Averages over all ranks and lets gradients through.

    Every rank's loss then depends on the inputs of all ranks, and data parallelism averages the gradients to that of
    the loss of the global batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    return torch.distributed.nn.functional.all_reduce(tensor) / dist.get_world_size()


@contextmanager
def distributed_world(
    device: str = "auto",
    deterministic: bool = False,
    tf32: bool = True,
    precision: str = "fp32",
    autotune: bool = False,
    choose_threads: Callable[[], ThreadChoice] | None = None,
) -> Iterator[World]:
    """Joins the process group that torchrun describes, says what it computes on, and leaves it at the end.

    `device` is `auto`, `cpu` or `cuda`. `deterministic` allows only algorithms whose bits repeat. `tf32=False` keeps
    full fp32 on GPUs; it is used for code extraction and evaluation. `precision` is for the first line of the log.
    `autotune` lets cuDNN choose its algorithms by measuring. `choose_threads` is asked where a single process computes
    on the CPU; several divide its cores.

    Raises ConfigError if the device is unknown or not there.
    """
    with measured_convolutions(autotune), reproducible_algorithms(deterministic), _join(device, tf32) as world:
        reason = ""
        if choose_threads is not None and world.size == 1 and not is_gpu(world.device):
            choice = choose_threads()
            torch.set_num_threads(choice.count)
            reason = choice.reason
        summary = device_line(world.device, world.size, precision, reason)
        if world.is_main:
            logger.info(summary)
        yield replace(world, summary=summary)


@contextmanager
def _join(device_name: str, tf32: bool) -> Iterator[World]:
    """The world of this process, for as long as the context lasts."""
    # A caller that started the group itself, such as a test, keeps it.
    if dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
        yield World(rank, size, rank, pick_device(device_name, rank, tf32))
        return

    # torchrun says in the environment who this process is; without torchrun it is alone.
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device(device_name, local_rank, tf32)
    if size == 1:
        yield World(0, 1, 0, device)
        return

    if device.type == "cpu":
        _prepare_cpu_processes(size)
    dist.init_process_group("nccl" if is_gpu(device) else "gloo", timeout=collective_timeout())
    try:
        yield World(rank, size, local_rank, device)
    finally:
        dist.destroy_process_group()


def _prepare_cpu_processes(size: int) -> None:
    """Sets up gloo on one machine and divides its cores, where the user has not said otherwise."""
    if os.environ.get("MASTER_ADDR") in ("localhost", "127.0.0.1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "OMP_NUM_THREADS" not in os.environ:
        num_local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        torch.set_num_threads(max(1, usable_cores() // num_local_processes))
