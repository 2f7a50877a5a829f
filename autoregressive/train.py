"""Trains a generator, such as a GPT, on extracted codes, or on images that become codes in each step.

    bash scripts/train_c2i.sh configs/gpt/GPT_B256.yaml data.codes=codes/VQ_SS256 data.tokenizer=runs/VQ_SS256 \\
        loop.run_dir=runs/GPT_B256
    python -m autoregressive.train --config configs/gpt/GPT_B256.yaml --config configs/gpt/online.yaml --dry-run
    python -m autoregressive.train --config configs/quickstart/gpt.yaml --dry-run

The same command continues a run that was stopped. Numbers of codes, tokens and classes that the config leaves open are
those of the codes; others must agree with them. Codes of another encoder or quantizer than those of the tokenizer
`data.tokenizer` are refused.
`--config` may be repeated, and later files win. `key=value` overrides any key, and `--print-config` shows all keys.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoregressive.models.base import Generator
from autoregressive.training.build import build_task, memory_plan, network_on_meta
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.data import check_data, open_data, require_names
from autoregressive.training.needs import training_needs
from autoregressive.training.sizes import with_sizes_of_present_codes
from engine.averages import average_warnings
from engine.checkpoint.code_maker import TOKENIZER_FINGERPRINT, CodeMaker
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import num_parameters
from engine.cli import parse_cli, run_entry
from engine.counts import counted
from engine.data.sources import summary_of
from engine.loop import check_batch, fit
from engine.memory_plan import tell_plans
from engine.preflight import require
from engine.run_log import Run
from engine.training_world import training_world
from engine.world import World
from tokenizer import load_tokenizer
from tokenizer.models.base import Tokenizer


def train(config: GPTTrainConfig, world: World) -> None:
    """Trains to the end, or continues where an earlier call stopped."""
    # All refusals come before anything is written.
    check_batch(config.data.global_batch_size, world, config.loop.grad_accum)
    require_names(config)
    tokenizer = load_tokenizer(config.data.tokenizer, device=world.device)
    data = open_data(config, tokenizer, world)
    config = data.completed(config)

    run = Run(config.loop.run_dir, config, world, config.loop.tracker_sections())
    with run:
        # The network, and what is to be said of the run.
        task = build_task(config, world, run, tokenizer, data.held_out, data.tokenization, classes=data.classes)
        generator: Generator = task.trained.module
        parameters = f"{num_parameters(generator):,} parameters"
        run.log(f"generator: {parameters}; {summary_of(data.source)}; {counted(world.size, 'process', 'processes')}")
        if data.tokenization is not None:
            run.log(
                f"tokens: made in each step by {tokenizer.provenance.path}, of crops of {tokenizer.image_size} pixels"
            )
        if data.held_out is None:
            run.log(f"no validation: {data.no_validation}")
        for warning in average_warnings(config.ema_decay, config.loop.last_step):
            run.log(f"warning: {warning}")

        # Checkpoints name the tokenizer, so that no other one is used with this generator, and the classes.
        checkpoints = CheckpointStore.for_run(
            run.dir,
            config.loop,
            world,
            config,
            frozen_sections=("model", "data.tokenize"),
            stamp={
                **_maker_of_codes(run.dir, tokenizer).stamp(),
                "tokenizer": tokenizer.provenance.stamp,
                **data.classes.stamp(),
                **data.stamp(),
            },
            frozen_stamps=(TOKENIZER_FINGERPRINT,),
            data=data.facts(),
            accept_changed_data=config.data.accept_changed,
            asynchronous=config.loop.async_save,
        )

        # The loop, over a stream of codes or of images.
        stream = data.stream(config, generator, world, lambda: checkpoints.order_version)
        fit(task, stream, config.loop, run, world, checkpoints, work=task.work, clocks=task.clocks)


def _maker_of_codes(run_dir: Path, tokenizer: Tokenizer) -> CodeMaker:
    """The tokenizer that the checkpoints of a run name: `tokenizer`, or where the run has begun with one that makes the
    same codes, that one.
    """
    maker = tokenizer.code_maker()
    newest = checkpoint_folders(run_dir)
    begun_with = CodeMaker.of_stamp(read_manifest(newest[-1]).get("stamp", {})) if newest else None
    if begun_with is None or not maker.makes_codes_of(begun_with):
        return maker
    return replace(maker, fingerprint=begun_with.fingerprint)


def validate(config: GPTTrainConfig) -> Generator:
    """Checks a config across its sections; returns its network, on the meta device. Raises ConfigError."""
    check_data(config)
    return network_on_meta(config)


def main() -> None:
    config, args = parse_cli(GPTTrainConfig, __doc__, check=validate)
    check_data(config)
    config = with_sizes_of_present_codes(config)
    network = network_on_meta(config)
    if args.plan:
        tell_plans([memory_plan(config, network, args.plan)], args.unset)
    if args.dry_run:
        print(f"generator: {num_parameters(network):,} parameters\nthe config is valid")
    require(args, lambda preflight: training_needs(config, network, preflight))
    loop = config.loop
    with training_world(loop) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
