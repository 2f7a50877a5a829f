"""Devices and precision. With `engine.world` and `engine.parallel` the only modules that call `torch.cuda`.

Other modules ask here for a device, a precision region or a synchronization, and so run unchanged on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from engine.messages import ConfigError

DEVICES = ("auto", "cpu", "cuda")  # auto: a GPU where there is one


def pick_device(name: str, local_rank: int = 0, tf32: bool = True) -> torch.device:
    """Returns the device that `auto`, `cpu` or `cuda` names; `auto` takes a GPU where there is one.

    On a GPU it also makes it the current one, and turns TF32 on or off for the whole process.

    Raises ConfigError if the name is unknown, or `cuda` is asked for and no GPU is visible.
    """
    if name not in DEVICES:
        raise ConfigError(f"device={name!r} is not known; choose one of: {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda', but no CUDA device is visible; use device=cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")

    torch.cuda.set_device(local_rank)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    return torch.device("cuda", local_rank)


def is_gpu(device: torch.device) -> bool:
    """Whether `device` is a GPU."""
    return device.type == "cuda"


def device_facts(device: torch.device) -> dict[str, str | int]:
    """What a process computes on, for the record of a run's start."""
    if device.type == "cpu":
        return {
            "type": "cpu",
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }

    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "visible": torch.cuda.device_count(),
    }


@contextmanager
def reproducible_algorithms(enabled: bool) -> Iterator[None]:
    """Allows only algorithms that give the same bits in every run (docs/exactness.md), if `enabled`.

    Inside, torch raises RuntimeError for an operation that has no such algorithm.
    """
    were_deterministic = torch.are_deterministic_algorithms_enabled()
    was_cudnn_deterministic = torch.backends.cudnn.deterministic
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(were_deterministic)
        torch.backends.cudnn.deterministic = was_cudnn_deterministic


def synchronize(device: torch.device) -> None:
    """Blocks until pending GPU work is done, so that timings are meaningful."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The autocast region of a precision: `fp32` (none) or `bf16`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switches autocast and TF32 off inside: an fp32 island in a bf16 training.

    Quantizers, entropies, perceptual and cosine losses, and statistics of evaluations run in it.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    allowed_before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, allowed_before, strict=True):
            backend.allow_tf32 = allowed
