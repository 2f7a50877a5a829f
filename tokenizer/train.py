"""Trains a tokenizer.

    bash scripts/train_vq.sh configs/vq/VQ_SS256.yaml loop.run_dir=runs/VQ_SS256
    python -m tokenizer.train --config configs/quickstart/tokenizer.yaml loop.steps=200     (one process)
    python -m tokenizer.train --config configs/vq/VQ_SS256.yaml --dry-run               (checks, without data or memory)

The same command continues a run that was stopped. A config with `phases` trains them one after the other, each in its
own folder under `loop.run_dir`. `--config` may be repeated (later wins); `key=value` overrides any
key; `--print-config` shows all of them.
"""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import count
from engine.cli import parse_cli, run_entry
from engine.data.samples import training_item
from engine.data.sources import open_source
from engine.data.stream import open_stream
from engine.loop import check_batch, fit
from engine.messages import ConfigError, logger
from engine.run_log import Run
from engine.world import World, distributed_world
from tokenizer.losses.terms import terms_table
from tokenizer.training.alerts import ALERTS
from tokenizer.training.build import (
    build_task,
    memory_plan,
    stamp_of,
    start_from,
    terms_of,
    validate,
    validation_images,
)
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.phases import _check_begun, _steps_done, phases_of


def train(config: TokenizerTrainConfig, world: World) -> None:
    """Trains all phases to the end, or continues where an earlier call stopped."""
    done, previous = 0, None
    phases = phases_of(config)
    _check_begun(config, phases)
    for own in phases:
        if own is phases[-1] or _steps_done(Path(own.loop.run_dir)) < own.loop.steps:
            train_phase(own, world, previous, done)
        done, previous = done + own.loop.steps, own


def train_phase(
    config: TokenizerTrainConfig, world: World, previous: TokenizerTrainConfig | None, steps_before: int
) -> None:
    """One training; the order of the data goes on where the `previous` phases left it, after `steps_before` steps."""
    check_batch(config.data.global_batch_size, world, config.loop.grad_accum)
    source = open_source(config.data, "train")
    validation = validation_images(config)
    if validation is not None and len(validation.images_u8) < world.size:
        raise ConfigError(f"validation.num_images must be {world.size} or more, one image a process")
    run = Run(config.loop.run_dir, config, world, config.loop.wandb_project)
    run.signs = ALERTS
    try:
        task = build_task(config, world, run, source, validation)
        size = f"{count(task.tokenizer.module):,} parameters"
        run.log(f"tokenizer: {size}; {len(source):,} training images; {world.size} process(es)")
        run.log(terms_table(task.terms, config.loop.steps))
        for name, stamp in task.frozen.stamps.items():
            run.log(f"frozen network {name}: {stamp}")
        if validation is None:
            run.log("no validation: data.val_root is empty")
        store = CheckpointStore(
            run.dir,
            world,
            config,
            keep_last=config.loop.keep_last,
            keep_every=config.loop.keep_every,
            stamp=stamp_of(task.frozen),
            asynchronous=config.loop.async_save,
        )
        start_from(task, config, previous, world)

        item = training_item(source, config.data, config.loop.seed)
        stream = open_stream(item, len(source), config.data, config.loop, world)
        show = ("loss", "reconstruction_l2", "reconstruction_l1", "codebook_usage", "lr")
        fit(task, lambda start: stream(steps_before + start), config.loop, run, world, store, show=show)
    finally:
        run.close()


def main() -> None:
    config, args = parse_cli(TokenizerTrainConfig, __doc__, plan=True)
    model = validate(config)
    if args.plan:
        for own in phases_of(config):
            print(f"{own.loop.run_dir}: {memory_plan(own, validate(own), args.plan)}")
        return
    if config.phases:
        logger.info("phases: they say steps and rates; loop.steps and optim.lr are not used")
    if args.dry_run:
        for own in phases_of(config):
            print(f"{own.loop.run_dir}: {own.loop.steps:,} steps\n{terms_table(terms_of(own), own.loop.steps)}")
        print(f"tokenizer: {count(model):,} parameters\nthe config is valid")
        return
    with distributed_world(config.loop.device, config.loop.deterministic) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
