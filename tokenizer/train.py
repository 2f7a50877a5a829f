"""Trains a tokenizer.

    bash scripts/train_vq.sh configs/vq/VQ_SS256.yaml loop.run_dir=runs/VQ_SS256
    python -m tokenizer.train --config configs/quickstart/tokenizer.yaml loop.steps=400     (one process)
    python -m tokenizer.train --config configs/vq/VQ_SS256.yaml --dry-run               (checks, without data or memory)

The same command continues a run that was stopped. If a config has `phases`, they are trained one after the other, each
in its own folder under `loop.run_dir`. `--config` may be repeated, and later files win. `key=value` overrides any key,
and `--print-config` shows all keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.checkpoint.manifest import order_version_of_run
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import num_parameters
from engine.cli import parse_cli, run_entry
from engine.counts import counted
from engine.data.classes import Classes
from engine.data.identity import facts_of
from engine.data.order import NEWEST_ORDER
from engine.data.samples import decoding_stamp, training_item, with_random_bits
from engine.data.sources import ImageSource, open_source, summary_of
from engine.data.stream import stream_opener
from engine.loop import Batch, check_batch, fit
from engine.memory_plan import Plan, tell_plans
from engine.messages import ConfigError, logger
from engine.preflight import require
from engine.run_log import Run
from engine.stopping import EXIT_STOPPED
from engine.training_world import training_world
from engine.world import World
from tokenizer.losses.terms import terms_table
from tokenizer.models.base import Tokenizer
from tokenizer.training.alerts import ALERTS
from tokenizer.training.build import build_task, memory_plan, validation_images
from tokenizer.training.checks import network_on_meta, terms_of, validate, warnings_of
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.frozen_networks import FROZEN_STAMPS
from tokenizer.training.needs import training_needs
from tokenizer.training.phases import check_trained_phases, phases_of, phases_until_stop, steps_done
from tokenizer.training.start import decoder_stamp, start_from
from tokenizer.training.task import TokenizerTask

# On the console.
SHOWN_METRICS = ("loss", "reconstruction_l2", "reconstruction_l1", "codebook_usage", "restarted_codes", "lr")


def train(config: TokenizerTrainConfig, world: World) -> None:
    """Trains all phases to the end or to `loop.stop_at`, or continues where an earlier call stopped."""
    check_trained_phases(config, phases_of(config))
    phases = phases_until_stop(config)
    steps_before = 0
    previous = None
    for phase in phases:
        is_finished = steps_done(phase.loop.run_dir) >= phase.loop.last_step
        is_end = len(phases) == len(config.phases) and not phase.loop.is_stopped_early
        if is_finished and phase is phases[-1] and is_end and world.is_main:
            logger.info("%s: all phases are finished", config.loop.run_dir)

        # A finished phase is skipped. The last one is opened anyway: that compares its checkpoint with the config.
        if phase is phases[-1] or not is_finished:
            is_asked_to_stop = train_phase(phase, world, previous, steps_before)
            if is_asked_to_stop and phase is not phases[-1]:
                logger.info("stopped by a signal after the last step of a phase; the same command continues")
                raise SystemExit(EXIT_STOPPED)
        steps_before += phase.loop.steps
        previous = phase

    # A phase that ends early says so itself.
    if len(phases) < len(config.phases) and not previous.loop.is_stopped_early and world.is_main:
        logger.info("stopped behind %s (loop.stop_at); a larger loop.stop_at, or 0, continues", previous.loop.run_dir)


def train_phase(
    config: TokenizerTrainConfig, world: World, previous: TokenizerTrainConfig | None, steps_before: int
) -> bool:
    """One training. The order of the data goes on where the phases before left it, after `steps_before` steps.

    Returns True if a signal in its last step asked to stop.
    """
    # Data, before anything is written.
    check_batch(config.data.global_batch_size, world, config.loop.grad_accum)
    source = open_source(config.data, "train")
    validation = validation_images(config, Classes.of(source))
    if validation is not None and len(validation.images_u8) < world.size:
        raise ConfigError(f"validation.num_images must be {world.size} or more, one image per process")

    data = {"train": facts_of(source)}
    if validation is not None:
        data["val"] = validation.source_facts

    run = Run(config.loop.run_dir, config, world, config.loop.tracker_sections())
    run.alerts = ALERTS
    with run:
        # Networks and their starting point.
        task = build_task(config, world, run, source, validation)
        _log_start(run, task, source, world, config)

        # Checkpoints. A phase goes on in the order of the phase before.
        order = NEWEST_ORDER if previous is None else order_version_of_run(Path(previous.loop.run_dir), NEWEST_ORDER)
        store = CheckpointStore.for_run(
            run.dir,
            config.loop,
            world,
            config,
            frozen_sections=("model", "train_parts"),
            stamp={
                **task.frozen.checkpoint_facts(),
                **decoding_stamp(source, config.data, config.loop.seed),
                **decoder_stamp(config, network_on_meta(config)),
            },
            frozen_stamps=FROZEN_STAMPS,
            data=data,
            accept_changed_data=config.data.accept_changed,
            order_version=order,
            asynchronous=config.loop.async_save,
        )

        # The loop, over a stream of samples.
        item = training_item(source, config.data, config.loop.seed)
        if task.takes_random_bits:
            item = with_random_bits(item, config.loop.seed)
        stream_from = stream_opener(
            item, len(source), config.data, config.loop, world, source.where, order_version=lambda: store.order_version
        )

        def batches_from(step: int) -> Iterator[Batch]:
            """The batches from a step of this phase on; the stream counts the steps of all phases."""
            return stream_from(steps_before + step)

        def begin() -> None:
            """The starting point; a phase that goes on has left the end of the one before, and its data, behind."""
            start_from(task, config, previous, world, data)

        loop = config.loop
        return fit(task, batches_from, loop, run, world, store, show=SHOWN_METRICS, begin=begin, work=task.work)


def _log_start(run: Run, task: TokenizerTask, source: ImageSource, world: World, config: TokenizerTrainConfig) -> None:
    """Says what is trained, on what, and with which loss."""
    parameters = f"{num_parameters(task.tokenizer.module):,} parameters"
    run.log(f"tokenizer: {parameters}; {summary_of(source)}; {counted(world.size, 'process', 'processes')}")
    run.log(terms_table(task.terms, config.loop.steps))
    for name, stamp in task.frozen.stamps.items():
        run.log(f"frozen network {name}: {stamp}")
    if task.validation is None:
        run.log("no validation: data.val_root and data.held_out are empty")
    for warning in warnings_of(config):
        run.log(f"warning: {warning}")


def plans_of(config: TokenizerTrainConfig, gpus: int) -> list[Plan]:
    """The memory that each phase needs on `gpus` GPUs."""
    return [
        memory_plan(phase, network_on_meta(phase), gpus).with_lines(before=f"{phase.loop.run_dir}: ")
        for phase in phases_of(config)
    ]


def print_dry_run(config: TokenizerTrainConfig, network: Tokenizer) -> None:
    """The steps and loss terms of each phase, and the size of the network."""
    for phase in phases_of(config):
        table = terms_table(terms_of(phase, network_on_meta(phase)), phase.loop.steps)
        print(f"{phase.loop.run_dir}: {phase.loop.steps:,} steps\n{table}")
        for warning in warnings_of(phase):
            print(f"warning: {warning}")
    print(f"tokenizer: {num_parameters(network):,} parameters\nthe config is valid")


def main() -> None:
    config, args = parse_cli(TokenizerTrainConfig, __doc__, check=validate)
    network = validate(config)
    if args.plan:
        tell_plans(plans_of(config, args.plan), args.unset)
    if config.phases:
        logger.info("phases: they say steps and learning rates; loop.steps and optim.lr are not used")
    if args.dry_run:
        print_dry_run(config, network)
    require(args, lambda preflight: training_needs(config, network, preflight))
    loop = config.loop
    with training_world(loop) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
