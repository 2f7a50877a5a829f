"""Loads a trained tokenizer; its folder carries everything that is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from engine.checkpoint import find_weights, fingerprint, load_strict, read_weights
from engine.config import ConfigError, load_sections
from engine.datasets import DataConfig
from tokenizer.models.registry import ModelConfig, build_tokenizer


@dataclass(kw_only=True, slots=True)
class TokenizerSections:
    """The part of a training config that a trained tokenizer needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Provenance:
    """Where a loaded network came from. `fingerprint` is the SHA-256 of its parameters."""

    path: str
    weights: str  # "ema" or "model"
    fingerprint: str
    stamp: dict[str, Any]
    config: Any


def load_tokenizer(path: str | Path, *, weights: str = "auto", device: str = "cpu") -> nn.Module:
    """A tokenizer in evaluation mode from a run folder, a checkpoint, or an exported folder.

    `weights`: `ema`, `model`, or `auto` (ema where there is one). The result has an attribute `provenance`. A folder of
    another kind of network, or a damaged file, is an error; nothing loads partly.
    """
    found = find_weights(path, weights, "tokenizer")
    try:
        config = load_sections(TokenizerSections, found.folder / "config.yaml")
    except ConfigError as error:
        raise ConfigError(f"{found.folder} is not a tokenizer: {error}") from error
    model = build_tokenizer(config.model, config.data.image_size)
    load_strict(model, read_weights(found.path), found.path)
    model = model.to(device).eval().requires_grad_(False)
    model.provenance = Provenance(str(found.folder), found.kind, fingerprint(model), found.stamp, config)
    return model
