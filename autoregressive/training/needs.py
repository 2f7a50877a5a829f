"""What the training of a generator needs beside its config: a tokenizer, codes or images, room on the disk."""

from __future__ import annotations

from autoregressive.models.base import Generator
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.data import KINDS
from engine.checkpoint.weights import num_parameters
from engine.preflight import Preflight, network_bytes
from tokenizer.loading import survey_tokenizer
from tokenizer.models.base import Tokenizer


def training_needs(config: GPTTrainConfig, network: Generator, preflight: Preflight) -> None:
    """Looks for all that a run needs. `network` is its generator, on the meta device."""
    tokenizer = _tokenizer_needs(config, preflight)
    KINDS[config.data.tokenize].needs(config, network, tokenizer, preflight)

    # A device, and room for checkpoints.
    checkpoint_bytes = network_bytes(num_parameters(network), ema=config.ema_decay > 0)
    preflight.training(config.loop, config.data.global_batch_size, checkpoint_bytes)


def _tokenizer_needs(config: GPTTrainConfig, preflight: Preflight) -> Tokenizer | None:
    """Looks for the tokenizer; returns it without storage, or None where it is not there."""
    if not config.data.tokenizer:
        preflight.problem("data.tokenizer is empty; it names the tokenizer that made the codes")
        return None
    if preflight.comes_later(config.data.tokenizer, "data.tokenizer"):
        return None
    with preflight.collecting():
        tokenizer = survey_tokenizer(config.data.tokenizer, hashed=preflight.hashes)
        preflight.ready.append(f"data.tokenizer: {config.data.tokenizer} ({tokenizer.num_tokens} tokens)")
        return tokenizer
    return None
