"""Loads a trained GPT: one of ours, whose folder carries everything that is needed, or a published file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.published import ignored, layout_rules
from engine.checkpoint.weights import find_weights, fingerprint, load_strict, read_weights
from engine.config import load_sections
from engine.messages import ConfigError
from tokenizer.loading import Provenance, streams_of
from tokenizer.published.files import is_published, read_published
from tokenizer.published.layout import import_state
from tokenizer.published.parts import GPT_PART, is_gpt, select_submodule


@dataclass(kw_only=True, slots=True)
class GPTSections:
    """The part of a training config that a trained GPT needs."""

    model: GPTConfig = field(default_factory=GPTConfig)
    plugins: list[str] = field(default_factory=list)  # that training used; named in messages, never imported


def load_gpt(
    path: str | Path, *, config: str | Path | GPTConfig | None = None, weights: str = "auto", device: str = "cpu"
) -> GPT:
    """A GPT in evaluation mode from a run folder, a checkpoint, an exported folder, or a published file.

    A published file needs `config`: the YAML of its architecture, or a `GPTConfig`. `auto` takes the averaged weights
    of our own runs, and `model` of a published file, as the published readers do. See `load_tokenizer`.
    """
    gpt, provenance = _load_published(Path(path), config, weights) if is_published(path) else _load_own(path, weights)
    gpt = gpt.to(device).eval().requires_grad_(False)
    gpt.provenance = replace(provenance, fingerprint=fingerprint(gpt))
    return gpt


def _load_own(path: str | Path, weights: str) -> tuple[GPT, Provenance]:
    found = find_weights(path, weights, "GPT")
    try:
        config = load_sections(GPTSections, found.folder / "config.yaml")
    except ConfigError as error:
        raise ConfigError(f"{found.folder} is not a GPT: {error}") from error
    gpt = GPT(config.model)
    load_strict(gpt, read_weights(found.path), found.path)
    return gpt, Provenance(str(found.folder), found.kind, "", found.stamp, config)


def _load_published(path: Path, config: str | Path | GPTConfig | None, weights: str) -> tuple[GPT, Provenance]:
    if config is None:
        raise ConfigError(
            f"{path} is a published file: name its architecture (--gpt-model GPT-B, or --gpt-config FILE)"
        )
    model = config if isinstance(config, GPTConfig) else load_sections(GPTSections, config).model
    # WeTok's files hold raw weights of a GPT alone; --weights then speaks of the tokenizer
    state, picked = read_published(path, ("model", "module", "state_dict"), "auto" if model.streams else weights)
    state = select_submodule(state, GPT_PART)
    if not is_gpt(state):
        raise ConfigError(f"{path} holds no GPT (it has no tok_embeddings.weight); is it a tokenizer?")
    state = {name: value.float() for name, value in state.items() if not ignored(name)}
    with torch.device("meta"):
        gpt = GPT(model)
    load_strict(gpt, import_state(state, gpt.state_dict(), layout_rules(model)), path, assign=True)
    return gpt, Provenance(str(path), picked, "", {}, GPTSections(model=model))


def require_pair(gpt: GPT, tokenizer: nn.Module) -> None:
    """An error unless `gpt` was trained on codes of `tokenizer` (both loaded from folders)."""
    trained_on = gpt.provenance.stamp.get("tokenizer_fingerprint")
    given = tokenizer.provenance.fingerprint
    if trained_on is not None and trained_on != given:
        raise ConfigError(
            f"the GPT {gpt.provenance.path} was trained on codes of tokenizer {trained_on[:16]}, "
            f"but {tokenizer.provenance.path} is {given[:16]}"
        )
    own = (gpt.config.streams or gpt.config.vocab_size, gpt.config.num_tokens)
    others = (streams_of(tokenizer) or tokenizer.quantizer.codebook_size, tokenizer.num_tokens)
    if own != others:
        raise ConfigError(f"the GPT has {own[0]} codes and {own[1]} tokens, the tokenizer {others[0]} and {others[1]}")
