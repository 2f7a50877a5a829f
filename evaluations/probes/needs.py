"""What a linear probe needs beside its config: the frozen networks and images of the same size."""

from __future__ import annotations

from autoregressive.loading import require_sizes, survey_gpt
from engine.preflight import Preflight
from evaluations.probes.config import LinearProbeConfig
from evaluations.probes.features import SOURCES
from tokenizer.loading import survey_tokenizer


def training_needs(config: LinearProbeConfig, preflight: Preflight) -> None:
    """Looks for the networks, the images, and all that every training needs."""
    network = config.network
    options = {"weights": network.weights, "hashed": preflight.hashes}

    # The frozen networks, which must fit together.
    tokenizer = None
    with preflight.collecting():
        tokenizer = survey_tokenizer(network.tokenizer, config=network.tokenizer_config or None, **options)
        preflight.found.append(f"network.tokenizer: {network.tokenizer} ({tokenizer.num_tokens} tokens)")
        if config.data.image_size != tokenizer.image_size:
            preflight.problem(
                f"data.image_size={config.data.image_size}, but the tokenizer is for {tokenizer.image_size}"
            )
    if SOURCES[network.source].needs_generator:
        with preflight.collecting():
            generator = survey_gpt(network.gpt, config=network.gpt_config or None, **options)
            preflight.found.append(f"network.gpt: {network.gpt} ({generator.num_classes} classes)")
            if tokenizer is not None:
                require_sizes(generator, tokenizer)

    preflight.training_images(config.data)
    preflight.training(config.loop, config.data.global_batch_size, checkpoint_bytes=0)
