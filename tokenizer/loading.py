"""Loads a trained tokenizer: one of ours, whose folder carries everything that is needed, or a published file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.checkpoint.weights import find_weights, fingerprint, load_strict, read_weights
from engine.config import load_sections
from engine.data.config import DataConfig
from engine.messages import ConfigError
from tokenizer.models.generative_decoder import FIRST_CONV
from tokenizer.models.registry import ModelConfig, build_tokenizer
from tokenizer.published import layout as released
from tokenizer.published.files import is_published, read_published


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

    def facts(self) -> dict[str, Any]:
        """What a result says about the network."""
        facts = {name: getattr(self, name) for name in ("path", "weights", "fingerprint", "stamp")}
        wetok = getattr(self.config.model, "wetok", None)
        return facts | ({"noise_seed": wetok.noise_seed} if wetok is not None and wetok.generative_decoder else {})


@dataclass(kw_only=True, slots=True)
class _ImageSize:
    image_size: int = 256


@dataclass(kw_only=True, slots=True)
class _Sizes:
    """The part of a recipe that fixes the network; its other keys (data folders, say) need not resolve here."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: _ImageSize = field(default_factory=_ImageSize, metadata={"partial": True})


def load_tokenizer(
    path: str | Path, *, config: str | Path | None = None, weights: str = "auto", device: str = "cpu"
) -> nn.Module:
    """A tokenizer in evaluation mode from a run folder, a checkpoint, an exported folder, or a published file.

    A published `.pt` file needs `config`, the YAML of its architecture; WeTok's `.ckpt` shows its own. `weights`:
    `ema`, `model`, or `auto` (ema where there is one). The result has an attribute `provenance`. Another kind of
    network, another size, or a damaged file is an error; nothing loads partly.
    """
    if is_published(path):
        model, provenance = _load_published(Path(path), config, weights)
    else:
        model, provenance = _load_own(path, weights)
    model = model.to(device).eval().requires_grad_(False)
    model.provenance = replace(provenance, fingerprint=fingerprint(model))
    return model


def _load_own(path: str | Path, weights: str) -> tuple[nn.Module, Provenance]:
    found = find_weights(path, weights, "tokenizer")
    try:
        config = load_sections(TokenizerSections, found.folder / "config.yaml")
    except ConfigError as error:
        raise ConfigError(f"{found.folder} is not a tokenizer: {error}") from error
    model = build_tokenizer(config.model, config.data.image_size)
    load_strict(model, read_weights(found.path), found.path)
    return model, Provenance(str(found.folder), found.kind, "", found.stamp, config)


def _load_published(path: Path, config_path: str | Path | None, weights: str) -> tuple[nn.Module, Provenance]:
    sizes = _Sizes() if config_path is None else load_sections(_Sizes, config_path)
    wetok = config_path is None or sizes.model.name == "wetok"  # raw and averaged weights are in one state dict
    state, picked = read_published(path, ("ema", "model", "state_dict"), "auto" if wetok else weights)
    state = released.select_submodule(state, released.TOKENIZER_PART)
    if released.is_gpt(state):
        raise ConfigError(f"{path} holds a GPT, not a tokenizer")
    shown = released.wetok_config(state)
    if config_path is None and shown is None:
        raise ConfigError(
            f"{path} is a published file: name the YAML of its architecture (--tok-config, --model-config)"
        )
    if config_path is None:
        sizes.model = shown
    head = next((state[name] for name in released.SEMANTIC_HEADS if name in state), None)
    if head is not None and sizes.model.name == "hybrid":
        sizes.model.hybrid.semantic_dim = head.shape[0]  # the file knows the width of its training-only head
    with torch.device("meta"):
        model = build_tokenizer(sizes.model, sizes.data.image_size)
        first = state.get(FIRST_CONV, state.get(released.ema_key(FIRST_CONV)))
        if sizes.model.name == "wetok" and first is not None:  # as wide again: a generative decoder
            sizes.model.wetok.generative_decoder = first.shape[1] == 2 * model.quantizer.codebook_dim
            model = build_tokenizer(sizes.model, sizes.data.image_size)
    rules, own = released.layout_rules(sizes.model), model.state_dict()
    if sizes.model.name == "wetok":
        state, picked = released.pick_ema_or_raw(state, own, rules, weights, path)
    state = {name: value.float() for name, value in state.items()}
    if sizes.model.name != "wetok":
        state.setdefault("quantize.codebook_used", torch.zeros(own["quantizer.recent_indices"].shape))
    source = f"{path} (as {config_path})" if config_path else str(path)
    load_strict(model, released.import_state(state, own, rules), source, assign=True)
    data = DataConfig(image_size=sizes.data.image_size)
    return model, Provenance(str(path), picked, "", {}, TokenizerSections(model=sizes.model, data=data))


def streams_of(tokenizer: nn.Module) -> list[int]:
    """Codebook size of each index of a token; empty where a token has one index."""
    quantizer = tokenizer.quantizer
    return list(quantizer.group_sizes) if quantizer.num_groups > 1 else []
