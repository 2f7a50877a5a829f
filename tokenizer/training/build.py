"""Checks a config and builds the networks of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.weights import count, find_weights, load_strict, read_weights
from engine.config import check_all
from engine.data.images import to_float
from engine.data.samples import center_batch
from engine.data.sources import ON_DISK, ImageSource, has_split, open_source
from engine.memory_plan import plan
from engine.messages import ConfigError
from engine.parallel import build_device
from engine.run_log import Run
from engine.trained_model import TrainedModel
from engine.world import World
from tokenizer.discriminators.registry import DISCRIMINATORS
from tokenizer.losses.perceptual import PERCEPTUAL
from tokenizer.losses.semantic import TEACHERS
from tokenizer.losses.terms import loss_terms
from tokenizer.models.generative_decoder import widened
from tokenizer.models.hybrid import grid_size
from tokenizer.models.registry import QUANTIZERS, build_tokenizer
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.phases import phases_of, warmup_of
from tokenizer.training.task import FrozenNetworks, TokenizerTask, Validation

TEACHER_BATCH = 32  # fixed, so that cached features do not depend on how a run was interrupted


def validate(config: TokenizerTrainConfig) -> nn.Module:
    """Checks what single sections cannot, and returns the model (of the last phase) on the meta device. Changes
    nothing.
    """
    if config.phases:
        return [validate(own) for own in phases_of(config)][-1]
    problems = []
    if config.model.wetok.generative_decoder and not config.init:
        problems.append("model.wetok.generative_decoder freezes the encoder: it needs init or phases")
    if config.model.name != "hybrid":
        used = {"semantic.teacher": config.semantic.teacher, "loss.shortcut.end_step": config.loss.shortcut.end_step}
        problems += [f"{k}={v}: only model.name=hybrid has it" for k, v in used.items() if v]
    elif config.semantic.teacher and config.semantic.weight > 0:
        dim = TEACHERS[config.semantic.teacher].dim
        if config.model.hybrid.semantic_layer is None:
            problems.append(
                "semantic.teacher is set, but model.hybrid.semantic_layer=null: the model has no semantic head"
            )
        if config.model.hybrid.semantic_dim != dim:
            problems.append(
                f"model.hybrid.semantic_dim={config.model.hybrid.semantic_dim}, but semantic.teacher="
                f"{config.semantic.teacher} has {dim} channels"
            )
    quantizer = config.model.quantizer
    if warmup_of(config) >= config.loop.steps:
        key = f"model.quantizer.{quantizer.name}.warmup_steps"
        problems.append(f"{key}={quantizer.warmup_steps} must be below loop.steps={config.loop.steps}")
    if config.loss.entropy_weight > 0 and quantizer.name in QUANTIZERS and "entropy" not in quantizer.loss_names:
        problems.append(
            f"loss.entropy_weight={config.loss.entropy_weight}: {quantizer.name} has no entropy loss; use 0"
        )
    model = None
    try:
        with torch.device("meta"):
            model = build_tokenizer(config.model, config.data.image_size)
        if config.loss.entropy_weight > 0 and quantizer.name == "gq":
            model.quantizer.require_memory(model.num_tokens)
    except ConfigError as error:
        problems.append(str(error))
    if config.loss.discriminator.enabled and config.loss.discriminator.name == "patchgan":  # dino takes any size
        try:
            with torch.device("meta"):
                network, _ = DISCRIMINATORS["patchgan"](config.loss.discriminator, config.assets)
                network.eval().logits(torch.empty(1, 3, config.data.image_size, config.data.image_size))
        except RuntimeError as error:  # a convolution runs out of pixels
            problems.append(
                f"data.image_size={config.data.image_size} is too small for the discriminator; lower "
                f"loss.discriminator.num_layers={config.loss.discriminator.num_layers} ({error})"
            )
    if not terms_of(config):
        problems.append("every loss weight is 0; there is nothing to train")
    check_all(problems)
    return model


def terms_of(config: TokenizerTrainConfig) -> list:
    semantic_weight = config.semantic.weight if config.semantic.teacher else 0.0
    quantizer = config.model.quantizer
    own = frozenset() if config.model.wetok.generative_decoder else quantizer.loss_names  # then it is frozen
    return loss_terms(config.loss, semantic_weight, warmup_of(config), own)


def frozen_networks(config: TokenizerTrainConfig, world: World) -> FrozenNetworks:
    """The pretrained networks that the active terms need."""
    frozen = FrozenNetworks()
    if config.loss.perceptual_weight > 0:
        network, stamp = PERCEPTUAL[config.loss.perceptual](config.assets, config.loss.lpips_dropout)
        frozen.perceptual, frozen.stamps[config.loss.perceptual] = network.to(world.device), stamp
    if config.semantic.teacher and config.semantic.weight > 0:
        grid = grid_size(config.model.hybrid, config.data.image_size)
        teacher = TEACHERS[config.semantic.teacher].build(grid, config.assets)
        frozen.teacher, frozen.stamps[config.semantic.teacher] = teacher.to(world.device), teacher.stamp
    return frozen


@torch.no_grad()
def cached_features(teacher: nn.Module, source: ImageSource, image_size: int, world: World) -> Tensor:
    """Teacher features of all images, (num_images, cells, dim) on the CPU; made once, in fixed batches, shared by the
    ranks.
    """

    def features(rows: np.ndarray) -> Tensor:
        return teacher(to_float(center_batch(source, image_size, rows)).to(world.device)).cpu()

    table = torch.zeros(len(source), *features(np.zeros(1, dtype=int)).shape[1:])
    for rows in torch.arange(len(source)).split(TEACHER_BATCH)[world.rank :: world.size]:  # maybe none
        table[rows] = features(rows.numpy())
    return world.sum(table.to(world.device)).cpu()


def build_task(
    config: TokenizerTrainConfig, world: World, run: Run, train: ImageSource, validation: Validation | None
) -> TokenizerTask:
    """The networks of a run, on this rank's device."""
    torch.manual_seed(config.loop.seed)
    terms = terms_of(config)
    frozen = frozen_networks(config, world)
    cacheable = config.data.name not in ON_DISK and not config.data.augmented
    if frozen.teacher is not None and cacheable:
        run.log(f"computing the features of {config.semantic.teacher} for {len(train)} training images, once")
        frozen.teacher_cache = cached_features(frozen.teacher, train, config.data.image_size, world)
    shared = {"total_steps": config.loop.steps, "world": world}
    has_head = config.model.name == "hybrid" and config.model.hybrid.semantic_layer is not None
    idle_head = has_head and not any(t.name == "semantic" for t in terms)
    with build_device(world, config.loop):
        network = build_tokenizer(config.model, config.data.image_size)
    tokenizer = TrainedModel(
        network, config.optim, ema_decay=config.ema_decay, find_unused=idle_head, scale=config.loop, **shared
    )
    discriminator = None
    if config.loss.discriminator.enabled:
        build = DISCRIMINATORS[config.loss.discriminator.name]
        network, stamp = build(config.loss.discriminator, config.assets)
        if stamp is not None:
            frozen.stamps[config.loss.discriminator.name] = stamp
        discriminator = TrainedModel(network, config.optim, **shared)
    return TokenizerTask(
        tokenizer,
        discriminator,
        frozen,
        terms,
        world=world,
        precision=config.loop.precision,
        validation=validation,
        grid=run.grid,
        game=config.loss.discriminator,
        warmup_steps=warmup_of(config),
    )


def start_from(
    task: TokenizerTask, config: TokenizerTrainConfig, previous: TokenizerTrainConfig | None, world: World
) -> None:
    """Puts the end of the previous phase into a new task, all of it where the network stays the same; else the weights
    under `config.init`, raw into raw and averaged into averaged.
    """
    if previous is not None and previous.model == config.model:
        store = CheckpointStore(Path(config.init), world, previous, stamp=stamp_of(task.frozen))
        if store.load_latest(task.parts()) != previous.loop.steps:
            raise CheckpointError(f"the last checkpoint of {config.init} is damaged; remove it to train its end again")
    elif config.init:
        found = find_weights(config.init, "model", "tokenizer")
        raw, averaged = read_weights(found.path), found.folder / "ema.safetensors"
        states = {"module": raw, "ema": read_weights(averaged) if averaged.is_file() else raw}
        for name in states if task.tokenizer.ema is not None else ["module"]:
            network, state = getattr(task.tokenizer, name), states[name]
            if config.model.wetok.generative_decoder:  # its frozen encoder is the raw one
                state = {k: v if k.startswith("decoder.") else raw[k] for k, v in state.items()}
                state = widened(state, network.state_dict())
            load_strict(network, state, found.folder)


def stamp_of(frozen: FrozenNetworks) -> dict:
    """What checkpoints say about the frozen networks of the loss."""
    random = sorted(name for name, stamp in frozen.stamps.items() if stamp == "random")
    return {"networks": frozen.stamps, **({"weights": "random", "random": random} if random else {})}


def memory_plan(config: TokenizerTrainConfig, model: nn.Module, gpus: int) -> str:
    """The memory that training `model` (on the meta device) needs, with LPIPS and the discriminator in its loss."""
    names = {t.name for t in terms_of(config)}
    assets = replace(config.assets, random_stand_in=True)  # sizes matter, not values
    perceptual, discriminator = nn.Identity(), nn.Identity()
    if "perceptual" in names:
        perceptual, _ = PERCEPTUAL[config.loss.perceptual](assets, False)
    if "adversarial" in names:
        discriminator, _ = DISCRIMINATORS[config.loss.discriminator.name](config.loss.discriminator, assets)

    def forward(batch: int) -> list:
        images = torch.zeros(batch, 3, config.data.image_size, config.data.image_size)
        asked = {name: name in names for name in ("entropy", "semantic")}
        output = model(images, shortcut=any(n.startswith("shortcut_") for n in names), **asked)
        made = [m for m in (output.reconstructions, output.shortcut_reconstructions) if m is not None]
        seen = [perceptual(m, images) for m in made] if "perceptual" in names else []
        return [output, *seen, discriminator.logits(made[0]) if "adversarial" in names else None]

    discriminator.eval().requires_grad_(False)
    beside = 4 * count(perceptual) + 16 * count(discriminator)
    batch, ema = config.data.global_batch_size, config.ema_decay > 0
    return plan(model, forward, config.loop, batch, gpus, ema=ema, beside=beside)


def validation_images(config: TokenizerTrainConfig) -> Validation | None:
    """Fixed held-out images, the same for every seed, or None where the config names none."""
    if not has_split(config.data, "val"):
        return None
    source = open_source(config.data, "val")
    order = np.random.default_rng(0).permutation(len(source))[: config.validation.num_images]
    images = center_batch(source, config.data.image_size, np.sort(order), config.data.skip_broken)
    return Validation(images, config.validation.batch_size)
