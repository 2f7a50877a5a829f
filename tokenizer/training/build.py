"""Builds what a tokenizer run needs: its networks and task, its fixed held-out images, and its memory plan."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from engine.checkpoint.weights import num_parameters
from engine.data.classes import Classes, labels_among
from engine.data.identity import facts_of
from engine.data.samples import center_batch, fixed_choice
from engine.data.sources import SOURCES, ImageSource, has_split, open_source
from engine.memory_plan import MemoryModel, Plan, report
from engine.parallel import build_device
from engine.run_log import Run
from engine.seeds import torch_seed
from engine.trained_model import TrainedModel
from engine.without_storage import without_storage
from engine.world import World
from tokenizer.discriminators.registry import build_discriminator
from tokenizer.losses.perceptual import PERCEPTUAL
from tokenizer.losses.terms import outputs_needed
from tokenizer.models.base import Tokenizer
from tokenizer.training.checks import build_network, network_on_meta, terms_of
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.frozen_networks import FrozenNetworks, build_frozen_networks, cached_features
from tokenizer.training.task import TokenizerTask, Validation
from tokenizer.training.unmoved import unmoved_parameters


def build_task(
    config: TokenizerTrainConfig, world: World, run: Run, train: ImageSource, validation: Validation | None
) -> TokenizerTask:
    """The networks of a run, on this rank's device, and the task that trains them.

    The order of construction fixes the random initialization.
    """
    torch.manual_seed(torch_seed(config.loop.seed))
    meta_network = network_on_meta(config)
    terms = terms_of(config, meta_network)
    frozen = _frozen_networks(config, meta_network, world, run, train)

    # The tokenizer. A semantic head without a loss has no gradients, which data parallelism must know. Parameters of
    # the quantizer that no term moves are frozen: it would wait for their gradients, because their loss is computed.
    has_semantic_loss = any(term.name == "semantic" for term in terms)
    with build_device(world, config.loop):
        network = build_network(config)
    for name in unmoved_parameters(config, meta_network, terms):
        network.quantizer.get_parameter(name).requires_grad_(False)
    tokenizer = TrainedModel(
        network,
        config.optim,
        total_steps=config.loop.steps,
        world=world,
        ema_decay=config.ema_decay,
        find_unused="semantic" in meta_network.capabilities and not has_semantic_loss,
        parallel=config.loop,
    )

    # The discriminator.
    discriminator = None
    if config.loss.discriminator.enabled:
        network = build_discriminator(config.loss.discriminator, config.assets)
        if network.stamp is not None:
            frozen.stamps[config.loss.discriminator.name] = network.stamp
        discriminator = TrainedModel(network, config.optim, total_steps=config.loop.steps, world=world)

    return TokenizerTask(
        tokenizer,
        discriminator,
        frozen,
        terms,
        world=world,
        precision=config.loop.precision,
        validation=validation,
        save_grid=run.save_grid,
        discriminator_config=config.loss.discriminator,
        warmup_steps=config.warmup_steps,
        seed=config.loop.seed,
    )


def _frozen_networks(
    config: TokenizerTrainConfig, meta_network: Tokenizer, world: World, run: Run, train: ImageSource
) -> FrozenNetworks:
    """The frozen networks; teacher features are computed once where every image is seen in one crop only."""
    frozen = build_frozen_networks(config, meta_network, world)
    fits_memory = SOURCES[config.data.name].fits_memory
    if frozen.teacher is not None and fits_memory and not config.data.augmented:
        run.log(f"computing the features of {config.semantic.teacher} for {len(train)} training images, once")
        frozen.teacher_cache = cached_features(frozen.teacher, train, config.data.image_size, world)
    return frozen


def validation_images(config: TokenizerTrainConfig, classes: Classes) -> Validation | None:
    """Fixed held-out images, the same for every seed, or None where the config names none.

    A tokenizer uses no labels, but its codes are extracted with those of both splits: raises UserError for held-out
    images of other classes than `classes`, those of the training images.
    """
    if not has_split(config.data, "val"):
        return None
    source = open_source(config.data, "val")
    if classes.are_labels and Classes.of(source).are_labels:
        labels_among(Classes.of(source), classes)
    rows = fixed_choice(len(source), config.validation.num_images)
    images = center_batch(source, config.data.image_size, rows, config.data.skip_broken)
    return Validation(images, config.validation.batch_size, facts_of(source))


def memory_plan(config: TokenizerTrainConfig, model: Tokenizer, gpus: int) -> Plan:
    """The memory that training `model` (on the meta device) needs; see `memory_model`."""
    networks = loss_networks(config, {term.name for term in terms_of(config, model)})
    return report(memory_model(config, model, networks, gpus), config.loop, num_parameters(model))


class LossNetworks(NamedTuple):
    """The networks in the loss of a training; what the loss does not need is an identity."""

    perceptual: nn.Module
    discriminator: nn.Module


def loss_networks(config: TokenizerTrainConfig, names: Collection[str]) -> LossNetworks:
    """The networks of a loss with the terms `names`, for their sizes: the perceptual one on the meta device, the
    discriminator with random weights.
    """
    assets = replace(config.assets, random_stand_in=True)
    perceptual: nn.Module = nn.Identity()
    discriminator: nn.Module = nn.Identity()
    if "perceptual" in names:
        with without_storage():  # LPIPS draws 138M numbers, most of them for layers that it leaves out
            perceptual, _ = PERCEPTUAL[config.loss.perceptual](assets, False)
    if "adversarial" in names:
        discriminator = build_discriminator(config.loss.discriminator, assets)
    return LossNetworks(perceptual, discriminator.eval().requires_grad_(False))


def memory_model(config: TokenizerTrainConfig, model: Tokenizer, networks: LossNetworks, gpus: int) -> MemoryModel:
    """The memory that training `model` (on the meta device) needs on `gpus` GPUs, with the networks in its loss. What
    is on the meta device is fake afterwards.
    """
    names = {term.name for term in terms_of(config, model)}
    perceptual, discriminator = networks

    def forward(batch: int) -> list[object]:
        """A training pass with every term that is ever active; returns all that holds memory."""
        images = torch.zeros(batch, 3, config.data.image_size, config.data.image_size)
        bits = {"random_bits": torch.zeros(batch, dtype=torch.int64)} if model.takes_random_bits else {}
        output = model(images, **outputs_needed(names), **bits)
        reconstructions = [output.reconstructions]
        further = (output.prefix_reconstructions, output.shortcut_reconstructions)
        reconstructions += [images for images in further if images is not None]
        results: list[object] = [output]
        if "perceptual" in names:
            features = perceptual.features(images)
            results += [perceptual.distance(reconstruction, features) for reconstruction in reconstructions]
        if "adversarial" in names:
            results.append(discriminator.logits(output.reconstructions))
        return results

    # 4 bytes per frozen parameter; 16 with gradients and the two moments of AdamW.
    other_networks = 4 * num_parameters(perceptual) + 16 * num_parameters(discriminator)
    sizes = (config.loop.precision, config.data.global_batch_size, gpus)
    return MemoryModel.measure(model, forward, *sizes, ema=config.ema_decay > 0, beside=other_networks, others=networks)
