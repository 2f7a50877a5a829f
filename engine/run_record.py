"""The record of how a process was started: command, code, libraries, device, environment.

A run appends one such record to `starts.jsonl` at every start (`engine.run_log.Run.write_config`), so that a difference
between two runs, or between two starts of one run, can be traced to its cause.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from importlib.metadata import version
from typing import Any

from engine import __version__
from engine.devices import device_facts
from engine.installation import commit, is_changed
from engine.world import World

# Libraries whose version can change a number.
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "timm", "lpips", "torch-fidelity", "omegaconf")

# Environment variables that can change a run. They are named one by one, because any other may hold a secret.
ENVIRONMENT = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME",
    "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF", "NCCL_ALGO", "NCCL_PROTO", "GLOO_SOCKET_IFNAME",
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NPROC_PER_NODE", "gpus", "GPUS", "SLURM_JOB_ID", "SLURM_NTASKS",
    "PRETRAINED_DIR", "IMGNET_ROOT", "ALLOW_DOWNLOAD")  # fmt: skip


@functools.cache
def _installed_version(name: str) -> str:
    """The version of a library, which stays the same while a process runs."""
    return version(name)


def library_versions(*more: str) -> dict[str, str]:
    """{name: version} of Python, of the libraries that can change a number, and of `more` that are installed."""
    return {"python": platform.python_version(), **{name: _installed_version(name) for name in (*LIBRARIES, *more)}}


def start_record(world: World) -> dict[str, Any]:
    """Describes how this process was started, as plain values for JSON."""
    return {
        "time": round(time.time(), 3),
        "command": sys.argv,
        "program": __version__,
        "git": {"sha": commit(), "dirty": is_changed()},
        "versions": library_versions(),
        "device": device_facts(world.device),
        "processes": world.size,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }
