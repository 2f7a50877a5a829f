"""The meters of a training: rates by hand, waiting, what a user is told, and that unrecorded steps read nothing."""

import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine import meters as meters_module
from engine.devices import DeviceClock
from engine.flops import ImageWork, PartFlops
from engine.gpus import GPUS, gpu_of
from engine.meters import METERS, Meters

WORK = ImageWork(tokens=16, parts=(PartFlops("a", "matrix", 10**9), PartFlops("b", "convolution", 10**9)))


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def batches(*sizes):
    return [{"images_u8": torch.zeros(size, 3, 2, 2)} for size in sizes]


def test_rates_by_hand(world, clock):
    """Four steps of 3 + 5 images in 2 s, of which half a second waits for data; validation counts for nothing."""
    meters = Meters(10, 20, world, "bf16", lambda step: WORK)
    meters.peak = 1e12
    for step in range(10, 14):
        with meters.waiting():
            clock[0] += 0.125
        clock[0] += 0.375
        meters.count(batches(3, 5), step)
    found = meters.read(14)
    assert set(found) == set(METERS) - {"val/seconds", "tokenize_share"}
    assert found["steps_per_second"] == 2 and found["images_per_second"] == 16 and found["tokens_per_second"] == 256
    assert found["model_tflops"] == pytest.approx(32e-3) and found["mfu"] == pytest.approx(0.032)
    assert found["data_wait"] == 0.25 and found["peak_memory_gb"] > 0.01
    assert meters.time_left(14) == "ETA 0:00:03"

    # A new record begins; what validation takes is its own number.
    def evaluate(done):
        clock[0] += 30
        return {"val/loss": 1.0}

    assert meters.validate(evaluate, 14) == {"val/loss": 1.0, "val/seconds": 30}
    assert meters.validate(lambda done: {}, 14) == {}
    clock[0] += 1
    meters.count(batches(8), 14)
    assert meters.read(15)["images_per_second"] == 8


def test_parts_of_a_step_are_timed_by_their_clocks(world, clock):
    """As shares of the time since the last record; what happens before a validation ends counts for nothing."""
    tokenizing = DeviceClock(world.device)
    meters = Meters(0, 4, world, "fp32", clocks={"tokenize_share": tokenizing})
    for share in (0.25, 0.75):
        for step in range(2):
            with tokenizing.running():
                clock[0] += share
            clock[0] += 1 - share
            meters.count(batches(8), step)
        assert meters.read(2)["tokenize_share"] == share
    with tokenizing.running():
        clock[0] += 9
    meters.validate(lambda done: {}, 2)
    clock[0] += 1
    assert meters.read(3)["tokenize_share"] == 0


def test_work_that_changes_from_step_to_step(world, clock):
    """As where a discriminator starts: each step counts what it does."""
    twice = ImageWork(16, (*WORK.parts, *WORK.parts))
    meters = Meters(0, 2, world, "fp32", lambda step: (WORK, twice)[step])
    for step in range(2):
        clock[0] += 0.5
        meters.count(batches(1), step)
    assert meters.read(2)["model_tflops"] == pytest.approx(6e-3)


def test_what_is_not_known_is_said_and_left_out(world, monkeypatch):
    """A network that does not count its operations; a device whose peak nobody entered; a task without any work."""
    silent = Meters(0, 2, world, "fp32")
    assert silent.note() is None and "tokens_per_second" not in silent.read(1)
    uncounted = Meters(0, 2, world, "fp32", lambda step: ImageWork(4, None))
    uncounted.count(batches(2), 0)
    assert "does not count" in uncounted.note()
    found = uncounted.read(1)
    assert "tokens_per_second" in found and not {"model_tflops", "mfu"} & set(found)
    on_cpu = Meters(0, 2, world, "fp32", lambda step: WORK)
    on_cpu.count(batches(2), 0)
    assert on_cpu.note() == "no mfu in the records: the peak of this CPU is not in engine/gpus.py"
    assert "mfu" not in on_cpu.read(1)
    monkeypatch.setattr(meters_module, "name_of_device", lambda device: "NVIDIA H100 80GB HBM3")
    known = Meters(0, 2, world, "bf16", lambda step: WORK)
    known.count(batches(2), 0)
    assert known.note() is None and "mfu" in known.read(1) and known.peak == 989.4e12


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"), ("NVIDIA H20", "h20"), ("NVIDIA H800", "h800"), ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A100 80GB PCIe", "a100"), ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"), ("NVIDIA A10", "a10"), ("NVIDIA L4", "l4"), ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA B200", "b200"), ("NVIDIA A800-SXM4-80GB", "a800"),
        ("NVIDIA GeForce RTX 4090 D", None), ("Tesla V100-SXM2-16GB", None), ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("AMD Instinct MI300X", None),
    ],
)  # fmt: skip
def test_gpus_by_their_name(name, key):
    """Variants are told apart, and a chip that only sounds alike is not taken for another."""
    assert gpu_of(name) is (None if key is None else GPUS[key])


def test_steps_that_are_not_recorded_read_nothing_from_the_device(world):
    """Of tensors, meters ask for the length alone."""

    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            raise AssertionError(function)

    meters = Meters(0, 9, world, "fp32", lambda step: WORK)
    given = batches(4)
    with Refuse(), meters.waiting():
        meters.count(given, 0)
