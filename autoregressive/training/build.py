"""Checks a config against the codes, and builds what a run needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from autoregressive.codes import CodeStore
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.sampling import seeded_draw
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.task import next_token_loss
from engine.config import check_all
from engine.memory_plan import plan
from engine.run_log import Run
from engine.world import World


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
        run.save_grid(name, tokenizer.decode_indices(tokens), 4)

    return write
