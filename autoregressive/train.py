"""Trains a GPT on extracted codes.

    bash scripts/train_c2i.sh configs/gpt/GPT_B256.yaml data.codes=codes/VQ_SS256 data.tokenizer=runs/VQ_SS256 \\
        loop.run_dir=runs/GPT_B256
    python -m autoregressive.train --config configs/quickstart/gpt.yaml --dry-run

The same command continues a run that was stopped. Codes of another tokenizer than `data.tokenizer` are refused.
`--config` may be repeated (later wins); `key=value` overrides any key; `--print-config` shows all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoregressive.codes import CodeStore, code_item
from autoregressive.generate import Guidance, generate, seeded_draw
from autoregressive.gpt import GPT, GPTConfig
from autoregressive.task import GPTTask, next_token_loss
from engine.checkpoint import CheckpointStore
from engine.config import ConfigError, check_all, parse_cli, run_entry
from engine.distributed import World, build_device, distributed_world
from engine.loop import check_batch, fit
from engine.optim import OptimConfig, Updater
from engine.plan import ScaledLoopConfig, count, plan
from engine.stream import open_stream
from engine.tracker import Run
from tokenizer import load_tokenizer


@dataclass(kw_only=True, slots=True)
class CodesConfig:
    """Which codes, and the tokenizer that made them."""

    codes: str = ""  # folder that extract_codes wrote
    tokenizer: str = ""  # folder of the tokenizer
    global_batch_size: int = 256  # images per optimizer step, over all ranks and micro-batches
    num_workers: int = 4  # loader processes per rank; 0 = in the training process

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.global_batch_size < 1:
            raise ConfigError("data.num_workers must be 0 or more, data.global_batch_size 1 or more")


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """Held-out codes and sample images that are looked at during training."""

    num_images: int = 500
    batch_size: int = 50
    preview_classes: int = 8  # classes in the sample grid, four images each; 0 = no grid
    guidance_scale: float = 2.0  # of the sample grid

    def __post_init__(self) -> None:
        if min(self.num_images, self.batch_size) < 1 or self.preview_classes < 0:
            raise ConfigError("validation.num_images and .batch_size must be 1 or more, .preview_classes 0 or more")


@dataclass(kw_only=True, slots=True)
class GPTTrainConfig:
    """Everything that defines a GPT run."""

    model: GPTConfig = field(default_factory=GPTConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            weight_decay=0.05, decay_params="matrices", max_grad_norm=1.0, schedule="wsd"
        )
    )
    ema_decay: float = 0.0  # 0 = no averaged weights
    data: CodesConfig = field(default_factory=CodesConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: ScaledLoopConfig = field(default_factory=ScaledLoopConfig)


def validate(config: GPTTrainConfig) -> GPT:
    """Checks the sizes and returns the model on the meta device."""
    with torch.device("meta"):
        return GPT(config.model)


def memory_plan(config: GPTTrainConfig, model: GPT, gpus: int) -> str:
    """The memory that training `model` (on the meta device) needs, without that of the tokenizer for previews."""
    model.rope(0, 1, torch.device("cpu"))  # real, for the cache outlives the plan

    def forward(batch: int) -> torch.Tensor:
        tokens = torch.zeros(batch, *config.model.token_shape, dtype=torch.long)
        return next_token_loss(model(torch.zeros(batch, dtype=torch.long), tokens), tokens)

    return plan(model, forward, config.loop, config.data.global_batch_size, gpus, ema=config.ema_decay > 0)


def check_codes(config: GPTConfig, store: CodeStore) -> None:
    """An error where the model was configured for other codes."""
    manifest = store.manifest
    wanted: dict[str, Any] = {
        "streams" if manifest.streams or config.streams else "vocab_size": manifest.streams or manifest.codebook_size,
        "num_tokens": manifest.num_tokens,
        "num_classes": len(manifest.class_names),
    }
    check_all(
        [
            f"model.{key}={getattr(config, key)}, but {store.folder} has {value}"
            for key, value in wanted.items()
            if getattr(config, key) != value
        ]
    )


def preview_grid(config: GPTTrainConfig, tokenizer: nn.Module, run: Run, world: World) -> Callable | None:
    """A function that writes a grid of samples: one class a row, four images."""
    rows = min(config.validation.preview_classes, config.model.num_classes)
    if rows == 0:
        return None
    labels = torch.arange(rows, device=world.device).repeat_interleave(4)

    def write(gpt: GPT, name: str) -> None:
        draw = seeded_draw(config.loop.seed, torch.arange(len(labels)), gpt.config.num_tokens * gpt.config.num_indices)
        tokens = generate(gpt, labels, draw=draw, guidance=Guidance(scale=config.validation.guidance_scale))
        run.grid(name, tokenizer.decode_indices(tokens), 4)

    return write


def train(config: GPTTrainConfig, world: World) -> None:
    """Trains to the end, or continues where an earlier call stopped."""
    check_batch(config.data.global_batch_size, world, config.loop.grad_accum)
    if not config.data.codes or not config.data.tokenizer:
        raise ConfigError("data.codes and data.tokenizer must name the codes and the tokenizer that made them")
    tokenizer = load_tokenizer(config.data.tokenizer, device=world.device)
    store = CodeStore(config.data.codes, "train")
    store.require(tokenizer.provenance.fingerprint, config.data.tokenizer)
    check_codes(config.model, store)
    held_out = CodeStore(config.data.codes, "val") if (Path(config.data.codes) / "val").is_dir() else None
    if held_out is not None:
        held_out.require(tokenizer.provenance.fingerprint, config.data.tokenizer)
    run = Run(config.loop.run_dir, config, world, config.loop.wandb_project)
    try:
        torch.manual_seed(config.loop.seed)
        with build_device(world, config.loop):
            network = GPT(config.model)
        shared = {"total_steps": config.loop.steps, "world": world, "scale": config.loop}
        gpt = Updater(network, config.optim, ema_decay=config.ema_decay, **shared)
        task = GPTTask(
            gpt,
            world=world,
            precision=config.loop.precision,
            validation=held_out,
            num_validation=config.validation.num_images,
            batch_size=config.validation.batch_size,
            preview=preview_grid(config, tokenizer, run, world),
        )
        run.say(f"GPT: {count(gpt.module):,} parameters; {len(store):,} training images; {world.size} process(es)")
        if held_out is None:
            run.say("no validation: the codes have no split `val`")
        checkpoints = CheckpointStore(
            run.dir,
            world,
            config,
            keep_last=config.loop.keep_last,
            keep_every=config.loop.keep_every,
            stamp={"tokenizer_fingerprint": tokenizer.provenance.fingerprint, "tokenizer": tokenizer.provenance.stamp},
            asynchronous=config.loop.async_save,
        )

        item = code_item(store, config.loop.seed, config.model.class_dropout_prob)
        stream = open_stream(item, len(store), config.data, config.loop, world)
        fit(task, stream, config.loop, run, world, checkpoints)
    finally:
        run.close()


def main() -> None:
    config, args = parse_cli(GPTTrainConfig, __doc__, plan=True)
    model = validate(config)
    if args.plan:
        print(memory_plan(config, model, args.plan))
        return
    if args.dry_run:
        print(f"GPT: {count(model):,} parameters\nthe config is valid")
        return
    with distributed_world(config.loop.device, config.loop.deterministic) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
