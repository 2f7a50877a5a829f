"""engine/data/stream.py: the order of samples is a pure function of (seed, position)."""

import os
import signal
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
import torch

from engine.data.order import FIRST_ORDER, SampleOrder
from engine.data.stream import position_rng, stream_opener
from engine.messages import UserError
from engine.world import World

COUNT = 10


@dataclass
class Settings:
    """What a stream needs of a data and a loop config."""

    global_batch_size: int = 12
    num_workers: int = 0
    seed: int = 5
    grad_accum: int = 1


def item(index: int, position: int) -> dict[str, torch.Tensor]:
    noise = position_rng(5, position).random()
    return {"index": torch.tensor(index), "position": torch.tensor(position), "noise": torch.tensor(noise)}


def global_batches(size: int = 1, steps: int = 4, start: int = 0, **settings) -> list[dict[str, torch.Tensor]]:
    """What all `size` ranks together see in each step."""
    config = Settings(**settings)
    streams = [
        stream_opener(item, COUNT, config, config, World(rank, size, rank, torch.device("cpu")))(start)
        for rank in range(size)
    ]
    batches = []
    for _ in range(steps):
        micro = [[next(stream) for stream in streams] for _ in range(config.grad_accum)]
        parts = [part for parts in micro for part in parts]
        assert all(len(part["index"]) == config.global_batch_size // (size * config.grad_accum) for part in parts)
        batches.append({key: torch.cat([part[key] for part in parts]) for key in parts[0]})
    return batches


def assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        assert all(torch.equal(x[key], y[key]) for key in x)


def test_positions_are_counted_over_all_steps():
    """Step k of a batch of 12 holds positions 12 k to 12 k + 11, in order, across the border of epochs."""
    batches = global_batches(steps=5)
    assert torch.equal(torch.cat([b["position"] for b in batches]), torch.arange(60))
    seen = torch.cat([b["index"] for b in batches])
    assert all(sorted(seen[e * COUNT : (e + 1) * COUNT].tolist()) == list(range(COUNT)) for e in range(6))


def test_a_stream_follows_the_order_that_its_run_began_with():
    """Asked when the stream is opened: the run of a checkpoint of an older program reads the table."""
    config, world = Settings(), World(0, 1, 0, torch.device("cpu"))
    versions = iter((FIRST_ORDER,))
    opener = stream_opener(item, COUNT, config, config, world, order_version=lambda: next(versions))
    old = torch.cat([batch["index"] for batch in islice(opener(2), 2)])
    assert old.tolist() == SampleOrder(5, COUNT, FIRST_ORDER).indices(range(24, 48)).tolist()
    new = torch.cat([batch["index"] for batch in global_batches(start=2, steps=2)])
    assert new.tolist() == SampleOrder(5, COUNT).indices(range(24, 48)).tolist() != old.tolist()


@pytest.mark.parametrize(("size", "grad_accum"), [(1, 2), (1, 4), (2, 1), (2, 3), (3, 2), (4, 1)])
def test_the_global_batch_does_not_depend_on_how_it_is_divided(size, grad_accum):
    """Any number of ranks and micro-batches sees the same samples with the same random numbers in each step."""
    assert_equal(global_batches(), global_batches(size=size, grad_accum=grad_accum))


def test_loader_processes_do_not_change_anything():
    """Batches of 0 and of 2 loader processes are equal, also their augmentation."""
    assert_equal(global_batches(), global_batches(num_workers=2))


@pytest.mark.gpu
def test_batches_on_a_gpu_are_those_of_the_cpu():
    """Through pinned memory and loader processes."""
    config = Settings(num_workers=2)
    world = World(0, 1, 0, torch.device("cuda"))
    batches = list(islice(stream_opener(item, COUNT, config, config, world)(0), 4))
    assert all(value.is_cuda for batch in batches for value in batch.values())
    assert_equal([{key: value.cpu() for key, value in batch.items()} for batch in batches], global_batches())


def test_a_restart_at_step_k_equals_the_tail():
    """Nothing has to be restored: the stream from step 3 is the rest of the stream from step 0."""
    assert_equal(global_batches(steps=6)[3:], global_batches(steps=3, start=3))
    assert_equal(global_batches(steps=6)[3:], global_batches(steps=3, start=3, size=2, grad_accum=2))


def test_random_numbers_of_positions_are_independent():
    """Streams of neighbouring positions and seeds share no numbers and do not correlate; each repeats exactly."""
    draws = np.array([position_rng(0, p).random(64) for p in range(200)])
    assert len(np.unique(draws)) == draws.size
    assert np.array_equal(draws[17], position_rng(0, 17).random(64))
    assert not np.array_equal(draws[17], position_rng(1, 17).random(64))
    assert abs(draws.mean() - 0.5) < 0.01
    neighbours = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.03
    long = position_rng(0, 0).random(100_000)
    assert not np.isin(draws[1], long).any()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_for_the_user_arrives_as_it_was_raised(num_workers):
    """Regression: an unreadable image in a loader process reached the user as a page of traceback."""

    def failing(index: int, position: int):
        if position == 13:
            raise UserError("x.png is not readable")
        return item(index, position)

    config = Settings(num_workers=num_workers)
    stream = stream_opener(failing, COUNT, config, config, World(0, 1, 0, torch.device("cpu")))(0)
    assert torch.equal(next(stream)["position"], torch.arange(12))
    with pytest.raises(UserError) as caught:
        list(islice(stream, 1))
    assert str(caught.value) == "x.png is not readable"


def test_a_decoder_that_kills_its_process_is_named():
    """The stream ends with the image that was being read, instead of a traceback or a wait without end."""

    def read(index: int, position: int):
        if index == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        return {"index": torch.tensor(index)}

    handler = signal.getsignal(signal.SIGCHLD)
    config, world = Settings(global_batch_size=4, num_workers=1), World(0, 1, 0, torch.device("cpu"))
    batches = stream_opener(read, 8, config, config, world, where=lambda index: f"/images/{index}.png")(0)
    with pytest.raises(UserError, match=r"a loader process was killed .*perhaps by /images/5\.png; remove the file"):
        for _ in range(3):
            next(batches)
    assert signal.getsignal(signal.SIGCHLD) == handler
