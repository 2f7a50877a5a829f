"""The order of training samples as a pure function of (seed, position).

Position p is the p-th sample of a run, counted over all ranks. Epoch e = p // n visits every sample once, in a
permutation that depends on (seed, e). Augmentation and label dropout draw from `position_rng(seed, p)`. Neither the
number of ranks nor that of loader workers enters, and a restart needs no state.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from engine.devices import is_gpu
from engine.messages import UserError
from engine.seeds import counter_rng
from engine.stopping import leave_signals_to_parent
from engine.world import World

Where = Callable[[int], str]  # index -> name of the sample for messages
ReadSample = Callable[[int, int], dict[str, Tensor]]  # (index, position) -> sample

AUGMENTATION_KEY = 0x5EED  # keeps the random numbers of positions apart from those of other users of the seed
NOTHING = -1  # no image is being read
PREFETCHED_BATCHES = 4  # per loader process


class StreamConfig(Protocol):
    """The part of a data config that a stream needs."""

    global_batch_size: int
    num_workers: int


class OrderConfig(Protocol):
    """The part of a loop config that a stream needs."""

    seed: int
    grad_accum: int


# ------------------------------------------------------------------------------------------------ the order
def position_rng(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one position: a counter-based generator, independent of all other positions."""
    return counter_rng(seed, AUGMENTATION_KEY, position)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the samples in one epoch; a few epochs stay cached, because every position asks."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def index_at(seed: int, position: int, count: int) -> int:
    """Which of `count` samples stands at `position`."""
    epoch, place = divmod(position, count)
    return int(_permutation(seed, epoch, count)[place])


def positions_of(step: int, chunk: int, global_batch_size: int, chunk_size: int) -> range:
    """The positions of one chunk of a step's global batch.

    Chunks are numbered by micro-batch first, then by rank, so that more ranks and more micro-batches are the same.
    """
    start = step * global_batch_size + chunk * chunk_size
    return range(start, start + chunk_size)


def _micro_batches(start_step: int, global_batch_size: int, grad_accum: int, world: World) -> Iterator[range]:
    """The positions of each micro-batch of this rank, from a step on, without end."""
    chunk_size = global_batch_size // (grad_accum * world.size)
    for step in itertools.count(start_step):
        for micro_batch in range(grad_accum):
            chunk = micro_batch * world.size + world.rank
            yield positions_of(step, chunk, global_batch_size, chunk_size)


# ------------------------------------------------------------------------------------------------ the loader
class _SamplesByPosition(Dataset):
    """Samples by position. A UserError is a value: a loader process would wrap it in its traceback.

    `reading` (num_workers,) is shared memory: the image that each loader process reads, for the case that it dies.
    """

    def __init__(self, read_sample: ReadSample, seed: int, count: int, num_workers: int) -> None:
        self.read_sample = read_sample
        self.seed = seed
        self.count = count
        self.reading = torch.full((num_workers,), NOTHING).share_memory_()

    def __getitem__(self, position: int) -> dict[str, Tensor] | UserError:
        index = index_at(self.seed, position, self.count)
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id] = index
        try:
            return self.read_sample(index, position)
        except UserError as error:
            return error
        finally:
            if worker is not None:
                self.reading[worker.id] = NOTHING


def _collate(samples: list[dict[str, Tensor] | UserError]) -> dict[str, Tensor] | UserError:
    """A batch of samples, or the first error among them."""
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    return default_collate(samples)


def _prepare_loader_process(worker: int) -> None:
    """One thread, and no signal but those of the trainer."""
    torch.set_num_threads(1)
    leave_signals_to_parent()


@contextmanager
def _loader_processes(samples: _SamplesByPosition, where: Where) -> Iterator[None]:
    """Turns the death of a loader process into a UserError that names the image which it was reading."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        images = [where(index) for index in samples.reading.tolist() if index != NOTHING]
        reason = " ".join(str(error).split())
        raise UserError(
            f"a loader process was killed ({reason[:200]}), perhaps by {' or '.join(images) or 'a lack of memory'}; "
            "remove the file, or free memory (data.num_workers)"
        ) from error


def _open_loader(loader: DataLoader) -> Iterator[Any]:
    """Starts the loader processes.

    PyTorch would raise their death wherever this process is at that moment; without its signal handler it is noticed
    where the next batch is waited for.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if is_main_thread:
        signal.signal(signal.SIGCHLD, handler)
    return batches


def stream_opener(
    read_sample: ReadSample,
    count: int,
    data: StreamConfig,
    loop: OrderConfig,
    world: World,
    where: Where = "sample {}".format,
) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """Returns `stream(start_step)`, which yields the micro-batches of this rank without end.

    `read_sample(index, position)` makes one of `count` samples; batches are stacked along a new first dimension and lie
    on this rank's device. A UserError of a sample is raised by the stream, also where a decoder kills its process:
    `where(index)` names a sample for that.
    """

    def stream(start_step: int) -> Iterator[dict[str, Tensor]]:
        samples = _SamplesByPosition(read_sample, loop.seed, count, data.num_workers)
        loader = DataLoader(
            samples,
            batch_sampler=_micro_batches(start_step, data.global_batch_size, loop.grad_accum, world),
            collate_fn=_collate,
            num_workers=data.num_workers,
            pin_memory=is_gpu(world.device),
            prefetch_factor=PREFETCHED_BATCHES if data.num_workers else None,
            # They are closures, which cannot be pickled: loader processes must be forks.
            multiprocessing_context="fork" if data.num_workers else None,
            worker_init_fn=_prepare_loader_process,
        )
        batches = _open_loader(loader)
        while True:
            with _loader_processes(samples, where):
                batch = next(batches)
            if isinstance(batch, UserError):
                raise batch
            yield {name: value.to(world.device, non_blocking=True) for name, value in batch.items()}

    return stream
