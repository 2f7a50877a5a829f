"""Loads a trained GPT; its folder carries everything that is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from autoregressive.gpt import GPT, GPTConfig
from engine.checkpoint import find_weights, fingerprint, load_strict, read_weights
from engine.config import ConfigError, load_sections
from tokenizer.loading import Provenance


@dataclass(kw_only=True, slots=True)
class GPTSections:
    """The part of a training config that a trained GPT needs."""

    model: GPTConfig = field(default_factory=GPTConfig)


def load_gpt(path: str | Path, *, weights: str = "auto", device: str = "cpu") -> GPT:
    """A GPT in evaluation mode from a run folder, a checkpoint, or an exported folder; see `load_tokenizer`."""
    found = find_weights(path, weights, "GPT")
    try:
        config = load_sections(GPTSections, found.folder / "config.yaml")
    except ConfigError as error:
        raise ConfigError(f"{found.folder} is not a GPT: {error}") from error
    gpt = GPT(config.model)
    load_strict(gpt, read_weights(found.path), found.path)
    gpt = gpt.to(device).eval().requires_grad_(False)
    gpt.provenance = Provenance(str(found.folder), found.kind, fingerprint(gpt), found.stamp, config)
    return gpt


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
