"""The training loop that every task shares: steps, checkpoints and records, nothing of losses or networks."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import WeightSets
from engine.messages import UserError
from engine.run_log import Run
from engine.validation import Problem, Section, at_least, one_of
from engine.world import World

Batch = dict[str, Tensor]
EXIT_STOPPED = 75  # exit code after SIGTERM or SIGUSR1: state saved, start the same command again


@dataclass(kw_only=True, slots=True)
class LoopConfig(Section):
    """How long to train and what to keep. Steps are optimizer updates."""

    run_dir: str = "runs/unnamed"
    steps: int = 1000
    seed: int = 0
    grad_accum: int = 1  # micro-batches per step; data.global_batch_size counts all of them on all ranks
    log_every: int = 100
    eval_every: int = 5000  # validation on the fixed held-out set; also at the end. 0 = only at the end
    save_every: int = 5000
    keep_last: int = 2  # newest checkpoints that stay
    keep_every: int = 0  # and every one whose step is a multiple of this; 0 = none
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32 | bf16 (autocast; quantizer, entropy, perceptual and cosine losses stay fp32)
    deterministic: bool = False  # only algorithms whose bits repeat: slower on a GPU; see docs/exactness.md
    wandb_project: str = ""  # empty = no wandb

    def problems(self) -> Iterator[Problem]:
        for name in ("steps", "grad_accum", "log_every", "save_every", "keep_last"):
            yield from at_least(self, name, 1)
        for name in ("seed", "eval_every", "keep_every"):
            yield from at_least(self, name, 0)
        yield from one_of(self, "precision", ("fp32", "bf16"))


@dataclass(kw_only=True, slots=True)
class TrainLoopConfig(LoopConfig):
    """A loop whose network may be spread over processes."""

    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"  # a copy per process; shards over all; shards inside each machine
    activation_checkpointing: bool = False  # the inside of each block is computed again in backward, not kept
    compile: bool = False  # torch.compile of each block
    async_save: bool = False  # checkpoints are copied to host memory and written while the training goes on


class Task(Protocol):
    """What is trained: a tokenizer with its discriminator, a GPT, a probe."""

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """One update of every network the task owns; returns detached scalars of this rank."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the fixed held-out set, equal on all ranks."""

    def parts(self) -> Mapping[str, Any]:
        """The `Stateful` objects that a checkpoint holds."""

    def weights(self) -> WeightSets:
        """The trained weights alone, for sharing."""


def seed_step(seed: int, rank: int, step: int) -> None:
    """Makes dropout a function of (seed, rank, step), so that it repeats after a restart."""
    torch.manual_seed((seed * 1_000_003 + step) * 4_099 + rank)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGUSR1 instead of dying, while training."""
    received: list[int] = []
    old = {s: signal.signal(s, lambda number, frame: received.append(number)) for s in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def fit(
    task: Task,
    open_stream: Callable[[int], Iterator[Batch]],
    config: LoopConfig,
    run: Run,
    world: World,
    store: CheckpointStore,
    show: tuple[str, ...] = (),
) -> None:
    """Trains `task` to `config.steps`, continuing from the newest checkpoint of the run if there is one.

    `open_stream(start)` yields micro-batches from step `start` on; it is a pure function of (seed, position), so there
    is no data state to restore. SIGTERM or SIGUSR1 saves and exits with code 75.
    """
    start = store.load_latest(task.parts())
    run.write_config()
    if start > 0:
        run.log(f"resumed from step {start} of {config.steps}")
    if start >= config.steps:
        return
    batches = open_stream(start)
    run.start_bar(start, config.steps)
    last_log, last_step = time.perf_counter(), start
    with _stop_signals() as received:
        for step in range(start, config.steps):
            micro_batches = [next(batches) for _ in range(config.grad_accum)]  # opening the loader draws random numbers
            seed_step(config.seed, world.rank, step)
            metrics = task.train_step(micro_batches, step)
            done = step + 1
            run.advance()
            if done % config.log_every == 0 or done == config.steps:
                values = world.mean(metrics)
                now = time.perf_counter()
                values["steps_per_second"] = (done - last_step) / (now - last_log)
                last_log, last_step = now, done
                run.log_metrics(done, values, show)
            if done == config.steps or (config.eval_every and done % config.eval_every == 0):
                run.log_metrics(done, task.evaluate(done))
                last_log, last_step = time.perf_counter(), done
            stop = world.any(bool(received))
            if done == config.steps or done % config.save_every == 0 or stop:
                store.save(done, task.parts(), task.weights, wait=stop or done == config.steps)
            if stop and done < config.steps:
                origin = received or "on another rank"
                run.log(f"stopped by signal {origin} after step {done}; the same command continues")
                raise SystemExit(EXIT_STOPPED)


def check_batch(global_batch_size: int, world: World, grad_accum: int) -> int:
    """The micro-batch size of one rank; an error where the global batch cannot be divided."""
    parts = world.size * grad_accum
    if global_batch_size % parts != 0 or global_batch_size < parts:
        raise UserError(
            f"data.global_batch_size={global_batch_size} is not divisible by {world.size} ranks x "
            f"loop.grad_accum={grad_accum}; use a multiple of {parts}"
        )
    return global_batch_size // parts
