"""Meters of a training: rates, waiting for data, memory. They go into the records beside the metrics of the task.

    steps_per_second      all over the steps since the last record, without validation
    images_per_second     of all processes
    tokens_per_second     of all processes; only where the images have tokens
    model_tflops          10^12 operations of the model per second and process, see `engine.flops`
    mfu                   the same as a fraction of the device's peak (`engine.gpus`)
    data_wait             fraction of the time in which a process waited for data; mean over processes
    tokenize_share        fraction of the time in which images become tokens; mean over processes. Only where a training
                          makes its tokens itself (`data.tokenize=online`)
    peak_memory_gb        most memory that a process has held since its start (a GPU's, else its own), in 10^9 bytes;
                          mean over processes
    val/seconds           what a validation took

Steps that are not recorded read nothing from the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

import torch
from torch import Tensor

from engine.data.wait import DataWait
from engine.devices import DeviceClock, held_at_most, name_of_device
from engine.flops import ImageWork
from engine.gpus import gpu_of
from engine.world import World

METERS = (
    "steps_per_second", "images_per_second", "tokens_per_second", "model_tflops", "mfu", "data_wait",
    "tokenize_share", "peak_memory_gb", "val/seconds",
)  # fmt: skip
Work = Callable[[int], ImageWork]  # step, counted from 0 -> what it does for one image


def no_work(step: int) -> ImageWork:
    """The work of a training that does not count it."""
    return ImageWork(tokens=0, parts=None)


class Meters:
    """The meters of one call of `engine.loop.fit`, from step `start` to `total`. All ranks `read` together.

    `clocks` time parts of a step: each gives a meter, a share of the time, under its name.
    """

    def __init__(
        self,
        start: int,
        total: int,
        world: World,
        precision: str,
        work: Work = no_work,
        clocks: Mapping[str, DeviceClock] | None = None,
    ) -> None:
        self.world = world
        self.total = total
        self.work = work
        self.clocks = clocks or {}
        gpu = gpu_of(name_of_device(world.device))
        self.peak = None if gpu is None else gpu.peak(precision)
        self.start = start
        self.began = time.perf_counter()
        self._data_wait = DataWait()
        self.waiting = self._data_wait.waiting  # a context around the wait for data
        self.restart(start)

    def note(self) -> str | None:
        """What a user should know of rates that the records will lack; None where they have all."""
        if self.work is no_work:
            return None
        if self.work(self.start).flops is None:
            return "no model_tflops in the records: a network of this training does not count its operations"
        if self.peak is None:
            return f"no mfu in the records: the peak of {name_of_device(self.world.device)} is not in engine/gpus.py"
        return None

    # ------------------------------------------------------------------------------------------------ the steps
    def restart(self, step: int) -> None:
        """Begins a new record at `step`."""
        self._since = time.perf_counter()
        self._step = step
        self._data_wait.restart()
        for clock in self.clocks.values():
            clock.restart()
        self._images = 0
        self._tokens = 0
        self._flops: int | None = 0

    def count(self, micro_batches: Sequence[dict[str, Tensor]], step: int) -> None:
        """Adds a finished step, counted from 0, of this rank."""
        images = sum(len(next(iter(batch.values()))) for batch in micro_batches)
        work = self.work(step)
        self._images += images
        self._tokens += images * work.tokens
        self._flops = None if work.flops is None or self._flops is None else self._flops + images * work.flops

    def validate(self, evaluate: Callable[[int], dict[str, float]], done: int) -> dict[str, float]:
        """The metrics of `evaluate(done)` with the time that they took, which counts for no rate."""
        began = time.perf_counter()
        metrics = evaluate(done)
        if metrics:
            metrics = {**metrics, "val/seconds": time.perf_counter() - began}
        self.restart(done)
        return metrics

    # ------------------------------------------------------------------------------------------------ the record
    def read(self, done: int) -> dict[str, float]:
        """The meters of the steps since the last record, and a new beginning. A collective."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        of_rank = {"data_wait": self._data_wait.measure(), "peak_memory_gb": held_at_most(self.world.device) / 1e9}
        of_rank |= {name: min(clock.seconds() / seconds, 1.0) for name, clock in self.clocks.items()}

        # Rates, where what they count is known.
        meters = {
            "steps_per_second": (done - self._step) / seconds,
            "images_per_second": self.world.size * self._images / seconds,
        }
        if self._tokens > 0:
            meters["tokens_per_second"] = self.world.size * self._tokens / seconds
        if self._flops:
            meters["model_tflops"] = self._flops / seconds / 1e12
            if self.peak is not None:
                meters["mfu"] = self._flops / seconds / self.peak

        # What differs between processes.
        meters |= self.world.mean({name: torch.tensor(value) for name, value in of_rank.items()})
        self.restart(done)
        return meters

    def time_left(self, done: int) -> str:
        """How long the rest will take, for people, by the pace since this process began, all included."""
        pace = (time.perf_counter() - self.began) / max(1, done - self.start)
        return f"ETA {timedelta(seconds=math.ceil(pace * (self.total - done)))}"
