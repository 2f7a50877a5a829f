"""How a process was started: code, libraries, device, and the environment that can change a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

from engine.world import World, device_facts

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pillow", "timm", "lpips", "torch-fidelity", "omegaconf")


# What of the environment can change a run. Named one by one: anything else may be a secret.
ENVIRONMENT = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF", "NCCL_ALGO", "NCCL_PROTO", "GLOO_SOCKET_IFNAME",
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NPROC_PER_NODE", "gpus", "GPUS", "SLURM_JOB_ID", "SLURM_NTASKS",
    "PRETRAINED_DIR", "IMGNET_ROOT", "ALLOW_DOWNLOAD")  # fmt: skip


def _git(*arguments: str) -> str:
    """The output of git in the working directory, or `unknown` outside a git checkout."""
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def library_versions() -> dict[str, str]:
    """Versions of what can change a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def start_record(world: World) -> dict[str, Any]:
    """How this process was started: command, code, libraries, device, and the environment that matters."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "time": round(time.time(), 3),
        "command": sys.argv,
        "git": {"sha": _git("rev-parse", "HEAD"), "dirty": changed if changed == "unknown" else bool(changed)},
        "versions": library_versions(),
        "device": device_facts(world),
        "processes": world.size,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }
