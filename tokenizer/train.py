"""Trains a tokenizer.

    bash scripts/train_vq.sh configs/vq/VQ_SS256.yaml loop.run_dir=runs/VQ_SS256
    python -m tokenizer.train --config configs/quickstart/tokenizer.yaml loop.steps=200     (one process)
    python -m tokenizer.train --config configs/vq/VQ_SS256.yaml --dry-run               (checks, without data or memory)

The same command continues a run that was stopped. A config with `phases` trains them one after the other, each in its
own folder under `loop.run_dir`. `--config` may be repeated (later wins); `key=value` overrides any
key; `--print-config` shows all of them.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.checkpoint import (
    CheckpointError,
    CheckpointStore,
    checkpoint_folders,
    find_weights,
    load_strict,
    phase_folders,
    read_manifest,
    read_weights,
)
from engine.config import ConfigError, check_all, logger, lookup, parse_cli, run_entry
from engine.datasets import ON_DISK, DataConfig, ImageSource, centre_batch, has_split, open_source, training_item
from engine.distributed import World, build_device, distributed_world
from engine.images import to_float
from engine.loop import check_batch, fit
from engine.optim import OptimConfig, Updater
from engine.plan import ScaledLoopConfig, count, plan
from engine.stream import open_stream
from engine.tracker import Run
from tokenizer.health import SIGNS
from tokenizer.losses.adversarial import DISCRIMINATORS
from tokenizer.losses.perceptual import PERCEPTUAL
from tokenizer.losses.semantic import TEACHERS
from tokenizer.losses.terms import LossConfig, loss_terms, terms_table
from tokenizer.models.hybrid import grid_size
from tokenizer.models.registry import QUANTIZERS, ModelConfig, build_tokenizer
from tokenizer.models.wetok import widened
from tokenizer.task import Frozens, TokenizerTask, Validation

TEACHER_BATCH = 32  # fixed, so that cached features do not depend on how a run was interrupted


@dataclass(kw_only=True, slots=True)
class SemanticConfig:
    """Semantic regularization of the decoder's inner features (`model.hybrid.semantic_layer`)."""

    teacher: str = ""  # dinov2_{s,b,l,g}[_reg] | clip_b | siglip_so400m | efficientnet_lite0; empty = off
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.teacher:
            lookup(TEACHERS, self.teacher, "semantic.teacher")
        if self.weight < 0:
            raise ConfigError(f"semantic.weight={self.weight} must be 0 or more")


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """Held-out images that are looked at during training: a fixed random choice of the `val` split."""

    num_images: int = 500
    batch_size: int = 25

    def __post_init__(self) -> None:
        if min(self.num_images, self.batch_size) < 1:
            raise ConfigError("validation.num_images and validation.batch_size must be 1 or more")


@dataclass(kw_only=True, slots=True)
class PhaseConfig:
    """One of several trainings, each from the end of the one before: weights, averages, and where the network stays the
    same also the optimizers, the discriminator and LeCam's averages.
    """

    steps: int
    lr: float
    generative_decoder: bool = False  # of model.wetok: a frozen encoder, and a decoder widened when it becomes true


@dataclass(kw_only=True, slots=True)
class TokenizerTrainConfig:
    """Everything that defines a tokenizer run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)  # of the tokenizer and of the discriminator
    ema_decay: float = 0.0  # 0 = no averaged weights
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loop: ScaledLoopConfig = field(default_factory=ScaledLoopConfig)
    assets: AssetsConfig = field(default_factory=AssetsConfig)
    init: str = ""  # tokenizer to start from (run, checkpoint, exported folder), whose quantizer's warm-up is over
    phases: list[PhaseConfig] = field(default_factory=list)  # instead of loop.steps and optim.lr; empty = one training


def phases_of(config: TokenizerTrainConfig) -> list[TokenizerTrainConfig]:
    """The configs of the phases in `<run_dir>/phase_1`, `phase_2`, ...; `config` itself where it names none."""
    result: list[TokenizerTrainConfig] = []
    for number, phase in enumerate(config.phases, start=1):
        init = result[-1].loop.run_dir if result else config.init
        loop = replace(config.loop, run_dir=f"{config.loop.run_dir}/phase_{number}", steps=phase.steps)
        optim, model = replace(config.optim, lr=phase.lr), copy.deepcopy(config.model)
        before = result[-1].model.wetok.generative_decoder if result else model.wetok.generative_decoder
        model.wetok.generative_decoder = phase.generative_decoder
        if phase.generative_decoder != before and (before or model.name != "wetok"):
            raise ConfigError(f"phases: number {number} cannot change generative_decoder of {model.name} from {before}")
        loss = _after(sum(own.loop.steps for own in result), config.loss)
        result.append(replace(config, phases=[], init=init, loop=loop, optim=optim, model=model, loss=loss))
    return result or [config]


def _after(steps: int, loss: LossConfig) -> LossConfig:
    """The terms of a phase that begins after `steps` updates: where terms begin and end counts over all phases."""
    discriminator = replace(loss.discriminator, start_step=max(1, loss.discriminator.start_step - steps))
    shortcut = replace(loss.shortcut, end_step=max(0, loss.shortcut.end_step - steps))
    return replace(loss, discriminator=discriminator, shortcut=shortcut)


def warmup_of(config: TokenizerTrainConfig) -> int:
    """Steps without quantization: none in later phases, nor where training starts from a tokenizer."""
    return 0 if config.init else config.model.quantizer.warmup_steps


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


def frozen_networks(config: TokenizerTrainConfig, world: World) -> Frozens:
    """The pretrained networks that the active terms need."""
    frozens = Frozens()
    if config.loss.perceptual_weight > 0:
        network, stamp = PERCEPTUAL[config.loss.perceptual](config.assets, config.loss.lpips_dropout)
        frozens.perceptual, frozens.stamps[config.loss.perceptual] = network.to(world.device), stamp
    if config.semantic.teacher and config.semantic.weight > 0:
        grid = grid_size(config.model.hybrid, config.data.image_size)
        teacher = TEACHERS[config.semantic.teacher].build(grid, config.assets)
        frozens.teacher, frozens.stamps[config.semantic.teacher] = teacher.to(world.device), teacher.stamp
    return frozens


@torch.no_grad()
def cached_features(teacher: nn.Module, source: ImageSource, image_size: int, world: World) -> Tensor:
    """Teacher features of all images, (num_images, cells, dim) on the CPU; made once, in fixed batches, shared by the
    ranks.
    """

    def features(rows: np.ndarray) -> Tensor:
        return teacher(to_float(centre_batch(source, image_size, rows)).to(world.device)).cpu()

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
    frozens = frozen_networks(config, world)
    cacheable = config.data.name not in ON_DISK and not config.data.augmented
    if frozens.teacher is not None and cacheable:
        run.say(f"computing the features of {config.semantic.teacher} for {len(train)} training images, once")
        frozens.teacher_cache = cached_features(frozens.teacher, train, config.data.image_size, world)
    shared = {"total_steps": config.loop.steps, "world": world}
    has_head = config.model.name == "hybrid" and config.model.hybrid.semantic_layer is not None
    idle_head = has_head and not any(t.name == "semantic" for t in terms)
    with build_device(world, config.loop):
        network = build_tokenizer(config.model, config.data.image_size)
    tokenizer = Updater(
        network, config.optim, ema_decay=config.ema_decay, find_unused=idle_head, scale=config.loop, **shared
    )
    discriminator = None
    if config.loss.discriminator.enabled:
        build = DISCRIMINATORS[config.loss.discriminator.name]
        network, stamp = build(config.loss.discriminator, config.assets)
        if stamp is not None:
            frozens.stamps[config.loss.discriminator.name] = stamp
        discriminator = Updater(network, config.optim, **shared)
    return TokenizerTask(
        tokenizer,
        discriminator,
        frozens,
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
        store = CheckpointStore(Path(config.init), world, previous, stamp=stamp_of(task.frozens))
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


def stamp_of(frozens: Frozens) -> dict:
    """What checkpoints say about the frozen networks of the loss."""
    random = sorted(name for name, stamp in frozens.stamps.items() if stamp == "random")
    return {"networks": frozens.stamps, **({"weights": "random", "random": random} if random else {})}


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
    images = centre_batch(source, config.data.image_size, np.sort(order), config.data.skip_broken)
    return Validation(images, config.validation.batch_size)


def train(config: TokenizerTrainConfig, world: World) -> None:
    """Trains all phases to the end, or continues where an earlier call stopped."""
    done, previous = 0, None
    phases = phases_of(config)
    _check_begun(config, phases)
    for own in phases:
        if own is phases[-1] or _steps_done(Path(own.loop.run_dir)) < own.loop.steps:
            train_phase(own, world, previous, done)
        done, previous = done + own.loop.steps, own


def _steps_done(run_dir: Path) -> int:
    folders = checkpoint_folders(run_dir)  # oldest first
    return read_manifest(folders[-1])["step"] if folders else 0


def _check_begun(config: TokenizerTrainConfig, phases: list[TokenizerTrainConfig]) -> None:
    """An error where a later phase began from another end of an earlier one than the config now says."""
    found = phase_folders(Path(config.loop.run_dir))
    if len(found) > len(phases) or (found and not config.phases):
        raise ConfigError(f"{found[-1]} was trained, but the config has {len(config.phases)} phases; use a new run_dir")
    for own, later in itertools.pairwise(phases):
        steps = _steps_done(Path(own.loop.run_dir))
        if steps > own.loop.steps or (steps != own.loop.steps and _steps_done(Path(later.loop.run_dir))):
            raise ConfigError(
                f"{own.loop.run_dir} ends at step {steps}, its phase has {own.loop.steps} steps, but "
                f"{later.loop.run_dir} begins there: trained phases keep their length; use another loop.run_dir"
            )


def train_phase(
    config: TokenizerTrainConfig, world: World, previous: TokenizerTrainConfig | None, steps_before: int
) -> None:
    """One training; the order of the data goes on where the `previous` phases left it, after `steps_before` steps."""
    check_batch(config.data.global_batch_size, world, config.loop.grad_accum)
    source = open_source(config.data, "train")
    validation = validation_images(config)
    if validation is not None and len(validation.images_u8) < world.size:
        raise ConfigError(f"validation.num_images must be {world.size} or more, one image a process")
    run = Run(config.loop.run_dir, config, world, config.loop.wandb_project)
    run.signs = SIGNS
    try:
        task = build_task(config, world, run, source, validation)
        size = f"{count(task.tokenizer.module):,} parameters"
        run.say(f"tokenizer: {size}; {len(source):,} training images; {world.size} process(es)")
        run.say(terms_table(task.terms, config.loop.steps))
        for name, stamp in task.frozens.stamps.items():
            run.say(f"frozen network {name}: {stamp}")
        if validation is None:
            run.say("no validation: data.val_root is empty")
        store = CheckpointStore(
            run.dir,
            world,
            config,
            keep_last=config.loop.keep_last,
            keep_every=config.loop.keep_every,
            stamp=stamp_of(task.frozens),
            asynchronous=config.loop.async_save,
        )
        start_from(task, config, previous, world)

        item = training_item(source, config.data, config.loop.seed)
        stream = open_stream(item, len(source), config.data, config.loop, world)
        show = ("loss", "reconstruction_l2", "reconstruction_l1", "codebook_usage", "lr")
        fit(task, lambda start: stream(steps_before + start), config.loop, run, world, store, show=show)
    finally:
        run.close()


def main() -> None:
    config, args = parse_cli(TokenizerTrainConfig, __doc__, plan=True)
    model = validate(config)
    if args.plan:
        for own in phases_of(config):
            print(f"{own.loop.run_dir}: {memory_plan(own, validate(own), args.plan)}")
        return
    if config.phases:
        logger.info("phases: they say steps and rates; loop.steps and optim.lr are not used")
    if args.dry_run:
        for own in phases_of(config):
            print(f"{own.loop.run_dir}: {own.loop.steps:,} steps\n{terms_table(terms_of(own), own.loop.steps)}")
        print(f"tokenizer: {count(model):,} parameters\nthe config is valid")
        return
    with distributed_world(config.loop.device, config.loop.deterministic) as world:
        train(config, world)


if __name__ == "__main__":
    run_entry(main)
