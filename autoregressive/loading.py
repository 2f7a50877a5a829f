"""Loads a trained GPT: one of ours, whose folder carries everything that is needed, or a published file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from autoregressive.gpt import GPT, GPTConfig
from autoregressive.released import GPT_NAMES, ignored
from engine.checkpoint import find_weights, fingerprint, load_strict, read_weights
from engine.config import ConfigError, load_sections
from tokenizer.loading import Provenance
from tokenizer.published import is_published, read_published
from tokenizer.released import import_state, is_gpt


@dataclass(kw_only=True, slots=True)
class GPTSections:
    """The part of a training config that a trained GPT needs."""

    model: GPTConfig = field(default_factory=GPTConfig)


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
    state, picked = read_published(path, ("model", "module", "state_dict"), weights)
    if not is_gpt(state):
        raise ConfigError(f"{path} holds no GPT (it has no tok_embeddings.weight); is it a tokenizer?")
    state = {name: value.float() for name, value in state.items() if not ignored(name)}
    with torch.device("meta"):
        gpt = GPT(model)
    load_strict(gpt, import_state(state, gpt.state_dict(), GPT_NAMES), path, assign=True)
    return gpt, Provenance(str(path), picked, "", {}, GPTSections(model=model))


def require_pair(gpt: GPT, tokenizer) -> None:
    """An error unless `gpt` was trained on codes of `tokenizer` (both loaded from folders)."""
    trained_on = gpt.provenance.stamp.get("tokenizer_fingerprint")
    given = tokenizer.provenance.fingerprint
    if trained_on is not None and trained_on != given:
        raise ConfigError(
            f"the GPT {gpt.provenance.path} was trained on codes of tokenizer {trained_on[:16]}, "
            f"but {tokenizer.provenance.path} is {given[:16]}"
        )
    if (gpt.config.vocab_size, gpt.config.num_tokens) != (tokenizer.quantizer.codebook_size, tokenizer.num_tokens):
        raise ConfigError(
            f"the GPT has {gpt.config.vocab_size} codes and {gpt.config.num_tokens} tokens, the tokenizer "
            f"{tokenizer.quantizer.codebook_size} and {tokenizer.num_tokens}"
        )
