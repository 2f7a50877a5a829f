"""Trains a generator, such as a GPT, on extracted codes.

    bash scripts/train_c2i.sh configs/gpt/GPT_B256.yaml data.codes=codes/VQ_SS256 data.tokenizer=runs/VQ_SS256 \\
        loop.run_dir=runs/GPT_B256
    python -m autoregressive.train --config configs/quickstart/gpt.yaml --dry-run

The same command continues a run that was stopped. Numbers of codes, tokens and classes that the config leaves open are
those of the codes; others must agree with them. Codes that were not made by the tokenizer `data.tokenizer` are refused.
`--config` may be repeated, and later files win. `key=value` overrides any key, and `--print-config` shows all keys.
"""

from __future__ import annotations

from pathlib import Path

from autoregressive.codes import CodeStore, code_batch
from autoregressive.models.base import Generator
from autoregressive.training.build import (
    build_task,
    check_codes,
    memory_plan,
    network_on_meta,
    with_sizes_of,
    with_sizes_of_present_codes,
)
from autoregressive.training.config import GPTTrainConfig
from engine.averages import average_warnings
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import num_parameters
from engine.cli import parse_cli, run_entry
from engine.data.classes import labels_among
from engine.data.identity import facts_of
from engine.data.sources import summary_of
from engine.data.stream import stream_opener
from engine.loop import check_batch, fit
from engine.messages import ConfigError
from engine.preflight import Preflight, network_bytes, require
from engine.run_log import Run
from engine.training_world import training_world
from engine.world import World
from tokenizer import load_tokenizer
from tokenizer.loading import survey_tokenizer
from tokenizer.models.base import Tokenizer


def open_codes(config: GPTTrainConfig, tokenizer: Tokenizer) -> tuple[CodeStore, CodeStore | None]:
    """The codes to train on and those held out, or None. Raises CodesError if another tokenizer made them."""
    store = CodeStore(config.data.codes, "train")
    store.require(tokenizer.provenance.fingerprint, config.data.tokenizer)
    check_codes(network_on_meta(config), config.model.name, store)

    if not (Path(config.data.codes) / "val").is_dir():
        return store, None
    held_out = CodeStore(config.data.codes, "val")
    held_out.require(tokenizer.provenance.fingerprint, config.data.tokenizer)
    held_out.take_labels_of(store.classes)
    return store, held_out


def training_needs(config: GPTTrainConfig, network: Generator, preflight: Preflight) -> None:
    """Looks for the codes, the tokenizer that made them, and all that every training needs."""
    # The tokenizer.
    if not config.data.tokenizer:
        preflight.problem("data.tokenizer is empty; it names the tokenizer that made the codes")
    else:
        with preflight.collecting():
            tokenizer = survey_tokenizer(config.data.tokenizer, hashed=preflight.hashes)
            preflight.ready.append(f"data.tokenizer: {config.data.tokenizer} ({tokenizer.num_tokens} tokens)")

    # The codes, held-out ones included.
    if not config.data.codes:
        preflight.problem("data.codes is empty; it names the folder that extract_codes wrote")
    else:
        with preflight.collecting():
            store = CodeStore(config.data.codes, "train")
            preflight.ready.append(f"data.codes: {len(store):,} images in {store.folder}")
            check_codes(network, config.model.name, store)
            if (Path(config.data.codes) / "val").is_dir():
                held_out = CodeStore(config.data.codes, "val")
                labels_among(held_out.classes, store.classes)

    # A device, and room for checkpoints.
    checkpoint_bytes = network_bytes(num_parameters(network), ema=config.ema_decay > 0)
    preflight.training(config.loop, config.data.global_batch_size, checkpoint_bytes)


def train(config: GPTTrainConfig, world: World) -> None:
    """Trains to the end, or continues where an earlier call stopped."""
    # All refusals come before anything is written.
    check_batch(config.data.global_batch_size, world, config.loop.grad_accum)
    if not config.data.codes or not config.data.tokenizer:
        raise ConfigError("data.codes and data.tokenizer must name the codes and the tokenizer that made them")
    tokenizer = load_tokenizer(config.data.tokenizer, device=world.device)
    config = with_sizes_of(config, CodeStore(config.data.codes, "train"))
    store, held_out = open_codes(config, tokenizer)

    run = Run(config.loop.run_dir, config, world, config.loop.wandb_project)
    with run:
        # The network, and what is to be said of the run.
        task = build_task(config, world, run, tokenizer, held_out)
        generator: Generator = task.trained.module
        parameters = f"{num_parameters(generator):,} parameters"
        run.log(f"generator: {parameters}; {summary_of(store)}; {world.size} process(es)")
        if held_out is None:
            run.log("no validation: the codes have no split `val`")
        for warning in average_warnings(config.ema_decay, config.loop.last_step):
            run.log(f"warning: {warning}")

        # Checkpoints name the tokenizer, so that no other one is used with this generator, and the classes.
        checkpoints = CheckpointStore.for_run(
            run.dir,
            config.loop,
            world,
            config,
            stamp={
                "tokenizer_fingerprint": tokenizer.provenance.fingerprint,
                "tokenizer": tokenizer.provenance.stamp,
                **store.classes.stamp(),
            },
            frozen_stamps=("tokenizer_fingerprint",),
            data={"train": facts_of(store)} | ({"val": facts_of(held_out)} if held_out is not None else {}),
            accept_changed_data=config.data.accept_changed,
            asynchronous=config.loop.async_save,
        )

        # The loop, over a stream of codes.
        stream = stream_opener(
            code_batch(store, config.loop.seed, generator.class_dropout_prob),
            len(store),
            config.data,
            config.loop,
            world,
            order_version=lambda: checkpoints.order_version,
            at_once=True,
        )
        fit(task, stream, config.loop, run, world, checkpoints, work=task.work)


def main() -> None:
    config, args = parse_cli(GPTTrainConfig, __doc__, plan=True, check=network_on_meta)
    config = with_sizes_of_present_codes(config)
    network = network_on_meta(config)
    if args.plan:
        print(memory_plan(config, network, args.plan))
        return
    if args.dry_run:
        print(f"generator: {num_parameters(network):,} parameters\nthe config is valid")
    require(args, lambda preflight: training_needs(config, network, preflight))
    loop = config.loop
    with training_world(loop) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
