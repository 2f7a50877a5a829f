"""Medians of forms that run in turns, and the memory that a form adds at its peak."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from engine.devices import is_gpu, peak_memory, start_peak_memory, synchronize
from evaluations.forked import CLEAR_REFS, added_here, in_fork

MIB = 2**20
Form = Callable[[], object]  # does the whole work once


@dataclass(frozen=True)
class Timing:
    """Seconds of one form over its repetitions."""

    median: float
    low: float  # the smallest
    high: float  # the largest

    @property
    def spread(self) -> float:
        """(largest - smallest) / median: how far the machine was from idle."""
        return (self.high - self.low) / self.median


def time_in_turns(forms: Mapping[str, Form], repetitions: int, device: torch.device) -> dict[str, Timing]:
    """Runs every form once to warm up and then `repetitions` times, in turns."""
    for form in forms.values():
        form()

    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repetitions):
        for name, form in forms.items():
            synchronize(device)
            start = time.perf_counter()
            form()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(median=statistics.median(values), low=min(values), high=max(values))
        for name, values in seconds.items()
    }


def added_memory(form: Form, device: torch.device) -> float | None:
    """MiB that one run of `form` adds at its peak; None where the system does not say (other than Linux).

    On a CPU it runs in a forked process, whose high-water mark starts at what it holds.
    """
    if is_gpu(device):
        held = start_peak_memory(device)
        form()
        return (peak_memory(device) - held) / MIB

    if not CLEAR_REFS.exists():
        return None
    try:
        return in_fork(lambda: added_here(form))
    except RuntimeError:
        return None  # the process was killed, as for lack of memory


def tensor_memory(form: Form, device: torch.device) -> float:
    """MiB of the tensors that are alive at the peak of one run of `form`, beyond those before it.

    Unlike `added_memory` it leaves out buffers inside of an operation, and does not depend on what the allocator of a
    CPU keeps of what was freed before.
    """
    if is_gpu(device):
        return added_memory(form, device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # of the profiler, which looks for GPUs
    form()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        form()
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        alive += change.nbytes()
        peak = max(peak, alive)
    return peak / MIB
