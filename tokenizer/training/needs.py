"""What the training of a tokenizer needs beside its config: images, pretrained networks, a start, room on the disk."""

from __future__ import annotations

from engine.assets import assets_of
from engine.checkpoint.weights import find_weights, num_parameters, read_header
from engine.preflight import Preflight, network_bytes
from tokenizer.discriminators.registry import DISCRIMINATORS
from tokenizer.losses.perceptual import PERCEPTUAL
from tokenizer.losses.semantic import TEACHERS
from tokenizer.models.base import Tokenizer
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.phases import phases_until_stop
from tokenizer.training.start import initial_weights


def training_needs(config: TokenizerTrainConfig, network: Tokenizer, preflight: Preflight) -> None:
    """Looks for all that a run needs. `network` is the tokenizer of its last phase, on the meta device."""
    preflight.training_images(config.data)
    preflight.assets(pretrained_assets(config), config.assets)
    if config.init:
        with preflight.collecting():
            kind = initial_weights(config.train_parts)
            weights = find_weights(config.init, kind, "init: tokenizer", hashed=preflight.hashes)
            header = read_header(weights.path)
            preflight.ready.append(f"init: {weights.path} ({len(header)} tensors)")

    checkpoint_bytes = network_bytes(num_parameters(network), ema=config.ema_decay > 0)
    phases = [phase.loop for phase in phases_until_stop(config)]
    preflight.training(config.loop, config.data.global_batch_size, checkpoint_bytes, phases)


def pretrained_assets(config: TokenizerTrainConfig) -> tuple[str, ...]:
    """The pretrained weights that the networks of the loss need, by their names in `engine.assets`."""
    components: list[object] = []
    if config.loss.perceptual_weight > 0:
        components.append(PERCEPTUAL[config.loss.perceptual])
    if config.semantic.enabled:
        components.append(TEACHERS[config.semantic.teacher])
    if config.loss.discriminator.enabled:
        components.append(DISCRIMINATORS[config.loss.discriminator.name])
    return tuple(asset for component in components for asset in assets_of(component))
