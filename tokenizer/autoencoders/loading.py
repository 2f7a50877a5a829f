"""Loads what reconstructs images: a tokenizer, or an autoencoder of another program, whichever a source is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.devices import usable_device
from engine.hub import is_address
from engine.messages import ConfigError
from tokenizer.autoencoders.autoencoder_kl import AutoencoderKL
from tokenizer.autoencoders.base import Autoencoder
from tokenizer.autoencoders.torchscript import TorchScriptAutoencoder
from tokenizer.loading import load_tokenizer, survey_tokenizer
from tokenizer.models.reconstructing import Reconstructing

AUTOENCODERS: tuple[type[Autoencoder], ...] = (TorchScriptAutoencoder, AutoencoderKL)


def autoencoder_kind(source: str | Path) -> type[Autoencoder] | None:
    """The kind of autoencoder that a source is; None for anything else, which may be a tokenizer."""
    return next((kind for kind in AUTOENCODERS if kind.recognizes(source)), None)


def load_reconstructing(
    source: str | Path, *, config: str | Path | None, weights: str, device: str, **trust: Any
) -> Reconstructing:
    """The network of a source, in evaluation mode: a tokenizer as `load_tokenizer` loads it, or an autoencoder.

    `trust` is what the user says of files that bring code (`trust_jit`, `jit_dtype`). Raises UserError as
    `load_tokenizer` does, for an autoencoder that is not trusted, and for options that it has no use for.
    """
    kind = autoencoder_kind(source)
    if kind is None:
        return load_tokenizer(source, config=config, weights=weights, device=device)
    _require_plain(source, config, weights)
    return kind.load(source, device=usable_device(device), **trust)


def survey_reconstructing(
    source: str | Path, *, config: str | Path | None, weights: str, hashed: bool, **trust: Any
) -> Reconstructing:
    """What `load_reconstructing` would load, from headers alone, without storage."""
    kind = autoencoder_kind(source)
    if kind is None:
        return survey_tokenizer(source, config=config, weights=weights, hashed=hashed)
    _require_plain(source, config, weights)
    return kind.load(source, device="cpu", header_only=True, **trust)


def require_codes(source: str | Path) -> None:
    """Raises ConfigError for an autoencoder in the place of a tokenizer whose codes are needed. Nothing is fetched."""
    if not is_address(source) and autoencoder_kind(source) is not None:
        raise ConfigError(
            f"{source} is an autoencoder of another program, whose codes or latents are not read: it can be measured "
            "(evaluations.reconstruction) and looked at (tokenizer.reconstruct), and nothing else"
        )


def _require_plain(source: str | Path, config: str | Path | None, weights: str) -> None:
    """Raises ConfigError for options of tokenizers that an autoencoder has no use for."""
    if config is not None:
        raise ConfigError(f"{source} is an autoencoder that brings its own config: leave out config {config}")
    if weights == "ema":
        raise ConfigError(f"{source} is an autoencoder with one set of weights: leave out --weights ema")
