"""What all tests on a real GPU share. They run with `pytest -m gpu`, and fail where there is none."""

import os
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts: for deterministic runs
sys.path.append(str(Path(__file__).parents[1] / "engine"))  # for the runs that other tests have made

import pytest
import torch

from engine.devices import device_problem
from engine.world import World


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first GPU."""
    problem = device_problem("cuda")
    assert problem is None, problem
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def gpu_world(gpu) -> World:
    """This process alone, on the first GPU."""
    return World(0, 1, 0, gpu)


@pytest.fixture(autouse=True)
def full_float32(gpu):
    """Float32 without TF32, as where numbers are compared with those of a CPU; put back afterwards."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed
