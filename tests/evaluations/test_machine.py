"""`evaluations.doctor --machine`: what a machine offers, and what is wrong with it."""

import fcntl
import re
from types import SimpleNamespace

import pytest
import torch

import evaluations.doctor.__main__
from engine import devices
from engine.devices import driver_version
from evaluations.doctor import machine

NAMES = ["driver", "GPUs", "NCCL", "/dev/shm", "threads", "locks", "disk"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(machine, "TEST_BYTES", 2**22)
    monkeypatch.setattr(machine, "MIN_DISK_SPEED", 1.0)
    for name in ("LOCAL_WORLD_SIZE", "NPROC_PER_NODE", "gpus", "GPUS"):
        monkeypatch.delenv(name, raising=False)


def test_every_reading_is_shown_and_nothing_stays_on_the_disk(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MIN_SHARED_MEMORY", 0)
    monkeypatch.setattr(machine, "MAX_LOAD", 1e6)
    code, out, err = entry(evaluations.doctor.__main__.main, "--machine", tmp_path)
    assert re.findall(r"^  (\S+): ", out, re.MULTILINE) == NAMES, out + err
    assert re.search(r"disk: writes [\d,]+ MB/s, reads [\d,]+ MB/s, [\d,.]+ GB free", out)
    assert f"torch {torch.__version__}" in out and "locks: by the file system" in out
    assert code == 0 and "no findings" in out and list(tmp_path.iterdir()) == []


def test_what_is_wrong_has_a_remedy_and_code_1(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MIN_SHARED_MEMORY", 10**18)
    monkeypatch.setattr(machine, "MIN_DISK_SPEED", 1e18)
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 4)
    code, out, _ = entry(evaluations.doctor.__main__.main, "--machine", tmp_path)
    assert code == 1 and "machine: 3 findings" in out
    for remedy in ("--shm-size", "OMP_NUM_THREADS=1", "loop.async_save=true"):
        assert remedy in out


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    assert machine.locks(tmp_path) == ("locks", "none by the file system; a file stands for them", "")


def test_gpus_that_do_not_work(tmp_path, monkeypatch):
    """Files of GPUs, a driver, and torch that cannot use them: the reason and a remedy."""
    (tmp_path / "nvidia0").touch()
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021\nGCC version: 9\n"
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(devices, "GPU_FILES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "version")

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040)")

    fake = SimpleNamespace(init=init, is_available=lambda: False, device_count=lambda: 0)
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert driver_version() == "470.82.01" and "NVIDIA 470.82.01" in machine.driver().evidence
    reading = machine.gpus()
    assert "too old (found version 11040)" in reading.evidence and "loop.device=cpu" in reading.remedy


def test_a_folder_or_the_machine_is_named(entry, tmp_path):
    code, _, err = entry(evaluations.doctor.__main__.main)
    assert code == 2 and "--machine" in err
    (tmp_path / "file").touch()
    code, _, err = entry(evaluations.doctor.__main__.main, "--machine", tmp_path / "file")
    assert code == 2 and "is a file" in err
