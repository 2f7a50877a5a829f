"""The stream of training batches, each sample of which is a pure function of (seed, position).

Which sample stands at a position is told by `engine.data.order`. Augmentation and label dropout draw from
`position_rng(seed, p)`. Neither the number of ranks nor that of loader workers enters, and a restart needs no state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from engine.data.loader import Note, Where, batches_in_order
from engine.data.order import NEWEST_ORDER, SampleOrder
from engine.seeds import counter_rng
from engine.world import World

Batch = dict[str, Tensor]
ReadSample = Callable[[int, int], Batch]  # (index, position) -> sample
ReadSamples = Callable[[np.ndarray, range], Batch]  # (indices, positions) -> samples, stacked

AUGMENTATION_KEY = 0x5EED  # keeps the random numbers of positions apart from those of other users of the seed


class StreamConfig(Protocol):
    """The part of a data config that a stream needs."""

    global_batch_size: int
    num_workers: int


class OrderConfig(Protocol):
    """The part of a loop config that a stream needs."""

    seed: int
    grad_accum: int


# ------------------------------------------------------------------------------------------------ positions
def position_rng(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one position: a counter-based generator, independent of all other positions."""
    return counter_rng(seed, AUGMENTATION_KEY, position)


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


# ------------------------------------------------------------------------------------------------ batches
def one_by_one(read_sample: ReadSample, indices: np.ndarray, positions: range, note: Note) -> Batch:
    """Reads samples one after the other and stacks them."""
    samples = []
    for index, position in zip(indices.tolist(), positions, strict=True):
        note(index)
        samples.append(read_sample(index, position))
    return default_collate(samples)


def stream_opener(
    read: ReadSample | ReadSamples,
    count: int,
    data: StreamConfig,
    loop: OrderConfig,
    world: World,
    where: Where = "sample {}".format,
    *,
    order_version: Callable[[], int] = lambda: NEWEST_ORDER,
    at_once: bool = False,
) -> Callable[[int], Iterator[Batch]]:
    """Returns `stream(start_step)`, which yields the micro-batches of this rank without end.

    `read(index, position)` makes one of `count` samples; with `at_once`, `read(indices, positions)` makes all of a
    micro-batch. Batches are stacked along a new first dimension and lie on this rank's device. A UserError of a sample
    is raised by the stream, also where a decoder kills its process: `where(index)` names a sample for that.

    `order_version` says which order of samples the run began with (`engine.data.order`). It is asked when a stream is
    opened, because a run that resumes knows it only then.
    """

    def stream(start_step: int) -> Iterator[Batch]:
        order = SampleOrder(loop.seed, count, order_version())

        def read_batch(positions: range, note: Note) -> Batch:
            indices = order.indices(positions)
            return read(indices, positions) if at_once else one_by_one(read, indices, positions, note)

        requests = _micro_batches(start_step, data.global_batch_size, loop.grad_accum, world)
        for batch in batches_in_order(read_batch, requests, data.num_workers, world.device, where):
            yield {name: value.to(world.device, non_blocking=True) for name, value in batch.items()}

    return stream
