"""The order of training samples as a pure function of (seed, position).

Position p is the p-th sample of a run, counted over all ranks. Epoch e = p // n visits every sample once, in a
permutation that depends on (seed, e). Augmentation and label dropout draw from `position_rng(seed, p)`. Neither the
number of ranks nor that of loader workers enters, and a restart needs no state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from engine.messages import UserError
from engine.world import World

Item = Callable[[int, int], dict[str, Tensor]]


class StreamConfig(Protocol):
    """The part of a data config that a stream needs."""

    global_batch_size: int
    num_workers: int


class OrderConfig(Protocol):
    """The part of a loop config that a stream needs."""

    seed: int
    grad_accum: int


def position_rng(seed: int, position: int) -> np.random.Generator:
    """Random numbers of one sample position: a counter-based generator, independent of all other positions."""
    return np.random.Generator(np.random.Philox(key=[seed, 0x5EED], counter=[0, 0, 0, position]))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def index_at(seed: int, position: int, count: int) -> int:
    """Which of `count` samples stands at `position`."""
    return int(_permutation(seed, position // count, count)[position % count])


def positions_of(step: int, chunk: int, global_batch_size: int, chunk_size: int) -> range:
    """The positions of one chunk of a step's global batch; chunks are numbered micro-batch first, then rank."""
    start = step * global_batch_size + chunk * chunk_size
    return range(start, start + chunk_size)


class _Items(Dataset):
    def __init__(self, item: Item, seed: int, count: int) -> None:
        self.item, self.seed, self.count = item, seed, count

    def __getitem__(self, position: int) -> dict[str, Tensor] | UserError:
        try:
            return self.item(index_at(self.seed, position, self.count), position)
        except UserError as error:  # as a value: a loader process would wrap it in its own traceback
            return error


def _collate(items: list[dict[str, Tensor] | UserError]) -> dict[str, Tensor] | UserError:
    return next((i for i in items if isinstance(i, UserError)), None) or default_collate(items)


def _chunks(start_step: int, global_batch_size: int, grad_accum: int, world: World) -> Iterator[range]:
    size = global_batch_size // (grad_accum * world.size)
    for step in itertools.count(start_step):
        for micro in range(grad_accum):
            yield positions_of(step, micro * world.size + world.rank, global_batch_size, size)


def open_stream(
    item: Item, count: int, data: StreamConfig, loop: OrderConfig, world: World
) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """`stream(start_step)`: micro-batches of this rank from a step on, without end. `item(index, position)` makes one
    of `count` samples.
    """

    def stream(start_step: int) -> Iterator[dict[str, Tensor]]:
        loader = DataLoader(
            _Items(item, loop.seed, count),
            batch_sampler=_chunks(start_step, data.global_batch_size, loop.grad_accum, world),
            collate_fn=_collate,
            num_workers=data.num_workers,
            pin_memory=world.device.type == "cuda",
            prefetch_factor=4 if data.num_workers else None,
            multiprocessing_context="fork" if data.num_workers else None,  # samples are made by closures
            worker_init_fn=lambda worker: torch.set_num_threads(1),
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield {name: value.to(world.device, non_blocking=True) for name, value in batch.items()}

    return stream
