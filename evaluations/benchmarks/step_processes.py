"""Processes that hold the quick start's tokenizer and take a training step together when they are asked to."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing as mp

from engine.world import distributed_world
from evaluations.benchmarks.training_pass import TrainingPass, training_config

TOKENIZER = "quickstart/tokenizer.yaml"


class StepProcesses:
    """They wait with a network each; they end with this process.

    `threads` is what each of them computes with. `environment` holds variables of these processes alone: those of
    OpenMP count only where they are set before a process loads it.
    """

    def __init__(
        self, size: int, images: int, threads: int = 1, environment: Mapping[str, str | None] | None = None
    ) -> None:
        """`size` processes share `images` images per step. A variable whose value is None is unset."""
        context = mp.get_context("spawn")
        port = _free_port()
        self._pipes: list[Connection] = []
        with _variables(environment or {}):
            for rank in range(size):
                here, there = context.Pipe()
                arguments = (rank, size, port, images // size, threads, there)
                context.Process(target=_serve, args=arguments, daemon=True).start()
                self._pipes.append(here)
        for pipe in self._pipes:
            pipe.recv()

    def step(self) -> None:
        """One step of all processes."""
        for pipe in self._pipes:
            pipe.send(True)
        for pipe in self._pipes:
            pipe.recv()


@contextlib.contextmanager
def _variables(environment: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables as processes that start in the meantime inherit them."""
    before = {name: os.environ.get(name) for name in environment}
    _set_variables(environment)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(rank: int, size: int, port: int, images: int, threads: int, pipe: Connection) -> None:
    """One process: builds its network, says so, and takes steps until the pipe is closed."""
    # Its threads, and its place among the processes as torchrun would tell it.
    torch.set_num_threads(threads)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads),
    }  # fmt: skip

    # Steps on request.
    with distributed_world("cpu") as world:
        training = TrainingPass(training_config(TOKENIZER, []), images, world.device, world)
        task = training.task(checkpointing=False)
        pipe.send(True)
        while True:
            try:
                pipe.recv()
            except EOFError:  # the benchmark has ended
                return
            training.run(task)
            pipe.send(True)
