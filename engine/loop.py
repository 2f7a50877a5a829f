"""The training loop that every task shares: steps, checkpoints, records; no losses, no networks.

An entry builds a task (`Task`), the run folder (`engine.run_log.Run`), the checkpoint store and the order of the data,
and hands them to `fit`. The loop has no hooks or callbacks: what is particular to a kind of training is in its task.

Steps are counted from 0. The step of a checkpoint or a record is the number of steps finished by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from engine.agreement import StopAgreement
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import WeightSets
from engine.devices import DEVICES, DeviceClock
from engine.messages import UserError
from engine.meters import Meters, Work, no_work
from engine.run_log import Run
from engine.seeds import seed_problems, torch_seed
from engine.stopping import EXIT_STOPPED, names_of, stop_requests
from engine.time_limits import SAVE_PATIENCE
from engine.trackers import TRACKERS
from engine.validation import Problem, Section, at_least, one_of
from engine.wandb_run import WandbConfig
from engine.watchdog import Watchdog
from engine.world import World

Batch = dict[str, Tensor]
INSPECT_STEPS = 128  # a state that training cannot go on from is noticed after so many steps at the latest


@dataclass(kw_only=True, slots=True)
class LoopConfig(Section):
    """How long to train and what to keep. Steps are optimizer steps."""

    run_dir: str = "runs/unnamed"  # folder of config, log, metrics, checkpoints and samples
    steps: int = 1000  # length of the run, by which all schedules count
    stop_at: int = 0  # end after this step, with a checkpoint; schedules stay those of `steps`. 0 = off
    seed: int = 0  # of initialization, data order, augmentation and dropout; 64 bits
    grad_accum: int = 1  # micro-batches per step; data.global_batch_size counts all of them on all ranks
    log_every: int = 100  # steps between records of the training metrics; also at the end
    eval_every: int = 5000  # validation on the fixed held-out set; also at the end. 0 = only at the end
    save_every: int = 5000  # steps between checkpoints; also at the end
    keep_last: int = 2  # newest checkpoints that stay
    keep_every: int = 0  # also keep every checkpoint at a multiple of this step; 0 = off
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32 | bf16 (autocast; quantizer, entropy, perceptual and cosine losses stay fp32)
    deterministic: bool = False  # only algorithms whose bits repeat: slower on a GPU; see docs/exactness.md
    trackers: list[str] = field(default_factory=list)  # that show the records beside metrics.jsonl: wandb, tensorboard
    wandb: WandbConfig = field(default_factory=WandbConfig)  # where a run appears there

    def problems(self) -> Iterator[Problem]:
        """Values out of range, and names that do not exist."""
        for name in ("steps", "grad_accum", "log_every", "save_every", "keep_last"):
            yield from at_least(self, name, 1)
        yield from seed_problems(self.seed)
        for name in ("stop_at", "eval_every", "keep_every"):
            yield from at_least(self, name, 0)
        yield from one_of(self, "device", DEVICES)
        yield from one_of(self, "precision", ("fp32", "bf16"))
        if not set(self.trackers) <= TRACKERS.keys():
            yield Problem("trackers", self.trackers, f"a list of some of: {', '.join(sorted(TRACKERS))}")

    def tracker_sections(self) -> dict[str, Any]:
        """{tracker: its section, or None} of the trackers of a run. A project for wandb asks for wandb."""
        names = [*self.trackers, *(["wandb"] if self.wandb.project else [])]
        return {name: getattr(self, name, None) for name in dict.fromkeys(names)}

    @property
    def last_step(self) -> int:
        """The number of steps after which the run ends: `stop_at` where it is set."""
        return min(self.stop_at or self.steps, self.steps)

    @property
    def is_stopped_early(self) -> bool:
        """Whether the run ends before its schedules do."""
        return self.last_step < self.steps


@dataclass(kw_only=True, slots=True)
class TrainLoopConfig(LoopConfig):
    """A loop whose network may be spread over processes; see `engine.parallel`."""

    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"  # a copy per process; shards over all; shards inside each machine
    activation_checkpointing: bool = False  # recompute the inside of each block in backward instead of keeping it
    compile: bool = False  # torch.compile of each block
    async_save: bool = False  # copy checkpoints to host memory and write them while the training goes on


class Task(Protocol):
    """What is trained: a tokenizer with its discriminator, a GPT, a probe."""

    def train_step(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """Updates every network that the task owns once; returns detached scalars of this rank.

        It does not wait for the device: no value that it computes may be read by the host.
        """

    def inspect(self) -> dict[str, Tensor]:
        """Looks at the state after a step; may wait for the device, and returns more scalars for a record.

        It is called before a record is written, and at least every `INSPECT_STEPS` steps. Raises UserError where
        training cannot go on from this state, such as after too many skipped updates.
        """

    def evaluate(self, step: int) -> dict[str, float]:
        """Returns metrics of the fixed held-out set, equal on all ranks, after `step` steps.

        Calls `engine.watchdog.sign_of_life` after each batch.
        """

    def parts(self) -> Mapping[str, Any]:
        """The `Stateful` objects that a checkpoint holds, by name."""

    def weights(self) -> WeightSets:
        """The trained weights alone, for sharing."""


def seed_step(seed: int, rank: int, step: int) -> None:
    """Makes dropout a function of (seed, rank, step), so that it repeats after a restart."""
    torch.manual_seed((torch_seed(seed) * 1_000_003 + step) * 4_099 + rank)


def fit(
    task: Task,
    batches_from: Callable[[int], Iterator[Batch]],
    config: LoopConfig,
    run: Run,
    world: World,
    store: CheckpointStore,
    show: tuple[str, ...] = (),
    begin: Callable[[], None] | None = None,
    work: Work = no_work,
    clocks: Mapping[str, DeviceClock] | None = None,
) -> bool:
    """Trains `task` to `config.last_step`, continuing from the newest checkpoint of the run if there is one.

    `batches_from(start)` yields micro-batches from step `start` on; it is a pure function of (seed, position), so there
    is no data state to restore. `show` names the metrics that the console prints (default: all). `begin` puts a
    starting point into the task; it is called only where there is no checkpoint to continue from. `work` says what a
    step does for one image, and `clocks` time parts of a step by the names of their meters (`engine.meters`).

    A stop signal (`engine.stopping.STOP_SIGNALS`) saves and raises SystemExit with code 75: after the step under way,
    or where there are several processes within a few steps (`engine.agreement`). In the last step it does not, because
    this training is then finished; the returned value says that there was one.
    """
    start = _start(task, config, run, store, begin)
    end = config.last_step
    if start >= end:
        run.finish(start, total=_early_end_of(config), is_new=False)
        return False

    batches = batches_from(start)
    run.start_bar(start, end)
    agreement = StopAgreement(world)
    inspected = start
    meters = Meters(start, end, world, config.precision, work, clocks)
    note = meters.note()
    if note is not None:
        run.log(note)
    with stop_requests(agreement.note) as signals, Watchdog(world, run.report_hang) as watchdog:
        for step in range(start, end):
            # Train. The first batch opens the loader, which draws random numbers: seed after it.
            watchdog.enter("reading a batch", step + 1)
            with meters.waiting():
                micro_batches = [next(batches) for _ in range(config.grad_accum)]
            seed_step(config.seed, world.rank, step)
            watchdog.enter("training step", step + 1)
            metrics = task.train_step(micro_batches, step)
            done = step + 1
            is_last = done == end
            run.advance()
            meters.count(micro_batches, step)

            # Record training metrics, averaged over ranks.
            if is_last or done % config.log_every == 0:
                values = world.mean(metrics | task.inspect())
                inspected = done
                values |= meters.read(done)
                run.log_metrics(done, values, show, meters.time_left(done))
            elif done - inspected >= INSPECT_STEPS:
                task.inspect()
                inspected = done

            # Validate on the held-out set.
            validates = is_last or (config.eval_every > 0 and done % config.eval_every == 0)
            if validates:
                watchdog.enter("validation", done)
                run.log_metrics(done, meters.validate(task.evaluate, done))

            # Save. All ranks stop together, also where only one of them got the signal.
            saves = is_last or done % config.save_every == 0
            stop = False
            if agreement.is_due() or validates or saves:
                watchdog.enter("agreement to go on", done)
                stop = agreement.ask(bool(signals))
            if saves or stop:
                watchdog.enter("saving", done, patience=SAVE_PATIENCE)
                store.save(done, task.parts(), task.weights, wait=is_last or stop)
            if stop and not is_last:
                origin = names_of(signals) or "a signal to another process"
                run.log(f"stopped by {origin} after step {done}; the same command continues")
                raise SystemExit(EXIT_STOPPED)
    run.finish(end, total=_early_end_of(config))
    return stop


def _start(task: Task, config: LoopConfig, run: Run, store: CheckpointStore, begin: Callable[[], None] | None) -> int:
    """Loads the newest checkpoint, or calls `begin`; returns the number of steps that are done."""
    start = store.load_latest(task.parts())
    if start == 0 and begin is not None:
        begin()
    run.write_config()
    run.begin(start)
    if start > 0:
        run.log(f"resumed from step {start} of {config.steps}")
    if config.is_stopped_early:
        is_over = "; nothing is left to do" if start >= config.last_step else ""
        run.log(f"ends after step {config.last_step:,} (loop.stop_at), with the schedules of {config.steps:,}{is_over}")
    return start


def _early_end_of(config: LoopConfig) -> int:
    """The steps of a training that ends before them; 0 for one that does not."""
    return config.steps if config.is_stopped_early else 0


def stop_problems(loop: LoopConfig, total: int) -> Iterator[Problem]:
    """A `loop.stop_at` behind the end of a training of `total` steps, which may have several phases."""
    if loop.stop_at > total:
        yield Problem("loop.stop_at", loop.stop_at, f"at most {total}, the steps of the training; 0 = off")


def check_batch(global_batch_size: int, world: World, grad_accum: int) -> int:
    """Returns the number of images per micro-batch on one rank.

    Raises UserError where the global batch cannot be divided.
    """
    problem = batch_problem(global_batch_size, world.size, grad_accum)
    if problem is not None:
        raise UserError(problem)
    return global_batch_size // (world.size * grad_accum)


def batch_problem(global_batch_size: int, num_processes: int, grad_accum: int) -> str | None:
    """Why a global batch cannot be divided among processes and micro-batches; None if it can."""
    num_parts = num_processes * grad_accum
    if global_batch_size % num_parts == 0 and global_batch_size >= num_parts:
        return None
    return (
        f"data.global_batch_size={global_batch_size} is not divisible by {num_processes} ranks x "
        f"loop.grad_accum={grad_accum}; use a multiple of {num_parts}"
    )
