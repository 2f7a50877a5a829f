"""What a machine offers to a training: GPUs, NCCL, shared memory, locks, threads, disk (`--machine`)."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from engine.cores import usable_cores
from engine.counts import counted
from engine.devices import (
    device_problem,
    driver_version,
    gpu_failure,
    gpu_names,
    has_gpu_files,
    nccl_version,
    torch_build,
)
from engine.folder_lock import lock_folder
from engine.installation import torch_hint
from engine.messages import UserError
from engine.preflight import num_local_processes

SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY = 2 * 10**9  # bytes free; loader processes hand batches over in it
TEST_BYTES = 2**28  # of the file that the speed of a disk is measured with
MIN_DISK_SPEED = 50e6  # bytes per second; below, saving a checkpoint of 10 GB takes minutes
MAX_LOAD = 1.5  # processes that want to run, per core


class Reading(NamedTuple):
    """One property of a machine; `remedy` says what to do where it is a problem, and is empty where it is none."""

    name: str
    evidence: str
    remedy: str = ""


def machine_readings(folder: Path) -> list[Reading]:
    """All readings; those of the disk are of the one that `folder` lies on, where a small file is written and removed.

    Raises UserError where the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor_") as scratch:
            readings_of: list[Callable[[], Reading]] = [
                driver,
                gpus,
                nccl,
                shared_memory,
                threads,
                lambda: locks(Path(scratch)),
                lambda: disk(Path(scratch)),
            ]
            return [reading_of() for reading_of in readings_of]
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error


# ------------------------------------------------------------------------------------------------ GPUs
def driver() -> Reading:
    """The driver of the GPUs, beside the CUDA version that torch is built for."""
    version = driver_version()
    if version is not None:
        return Reading("driver", f"NVIDIA {version}; {torch_build()}")
    remedy = "install the NVIDIA driver, or start the container with its GPUs" if has_gpu_files() else ""
    return Reading("driver", f"no NVIDIA driver; {torch_build()}", remedy)


def gpus() -> Reading:
    """The GPUs that torch can use, and why there are none."""
    names = gpu_names()
    count = num_local_processes(for_scripts=True)
    if names:
        remedy = device_problem("cuda", count) or ""
        processes = counted(count, "process", "processes")
        return Reading("GPUs", f"{len(names)} usable: {', '.join(sorted(set(names)))}; {processes}", remedy)
    remedy = "mend that, or run with loop.device=cpu" if has_gpu_files() else ""
    return Reading("GPUs", f"none can be used: {gpu_failure()}", remedy)


def nccl() -> Reading:
    """The library with which GPUs exchange gradients."""
    version = nccl_version()
    if version is not None:
        return Reading("NCCL", version)
    remedy = f"install a build of torch with NCCL ({torch_hint()})" if gpu_names() else ""
    return Reading("NCCL", "not in this build of torch", remedy)


# ------------------------------------------------------------------------------------------------ memory and cores
def shared_memory() -> Reading:
    """Where loader processes put batches."""
    if not SHARED_MEMORY.is_dir():
        return Reading(f"{SHARED_MEMORY}", "is missing", "set data.num_workers=0")
    usage = shutil.disk_usage(SHARED_MEMORY)
    evidence = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f} GB"
    remedy = ""
    if usage.free < MIN_SHARED_MEMORY:
        remedy = "start the container with a larger one (docker: --shm-size=16g), or set data.num_workers=0"
    return Reading(f"{SHARED_MEMORY}", evidence, remedy)


def threads() -> Reading:
    """Cores, threads of one process, and how busy the cores are."""
    num_cores = usable_cores()
    num_threads = torch.get_num_threads()
    num_processes = num_local_processes(for_scripts=True)
    load = os.getloadavg()[0]
    settings = ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"))

    evidence = (
        f"{counted(num_cores, 'core')}, {counted(num_threads, 'thread')} per process, "
        f"{counted(num_processes, 'process', 'processes')}, load {load:.1f}; {settings}"
    )
    remedy = ""
    if num_threads * num_processes > num_cores:
        remedy = (
            f"set OMP_NUM_THREADS={max(1, num_cores // num_processes)}: more threads than cores wait for each other"
        )
    elif load > MAX_LOAD * num_cores and os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        remedy = "other programs use the cores: set OMP_WAIT_POLICY=PASSIVE, so that waiting threads sleep"
    return Reading("threads", evidence, remedy)


# ------------------------------------------------------------------------------------------------ disk
def locks(folder: Path) -> Reading:
    """Whether the file system has locks, which keep two trainings out of one run folder."""
    lock = lock_folder(folder)
    lock.release()
    return Reading(
        "locks", "by the file system" if lock.is_of_system else "none by the file system; a file stands for them"
    )


def disk(folder: Path) -> Reading:
    """Free space, and the speed of writing a file to the disk and reading it from there."""
    path = folder / "speed"
    write_speed = _write_speed(path)
    read_speed = _read_speed(path)
    free = shutil.disk_usage(folder).free
    evidence = f"writes {write_speed / 1e6:,.0f} MB/s, reads {read_speed / 1e6:,.0f} MB/s, {free / 1e9:,.1f} GB free"
    is_slow = min(write_speed, read_speed) < MIN_DISK_SPEED
    return Reading("disk", evidence, "choose another loop.run_dir, or set loop.async_save=true" if is_slow else "")


def _write_speed(path: Path) -> float:
    """Bytes per second until a file is on disk."""
    content = os.urandom(2**20)  # a file system that compresses must not look fast
    start = time.monotonic()
    with path.open("wb") as file:
        for _ in range(TEST_BYTES // len(content)):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return TEST_BYTES / (time.monotonic() - start)


def _read_speed(path: Path) -> float:
    """Bytes per second of a file that the system was asked to forget."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.monotonic()
        while file.read(2**20):
            pass
    return TEST_BYTES / (time.monotonic() - start)
