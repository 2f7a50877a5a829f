"""Builds what a run of a generator needs: its network and task, its previews and memory plan."""

from __future__ import annotations

import torch

from autoregressive.generate import draw_tokens
from autoregressive.guidance import Guidance
from autoregressive.models.base import Generator
from autoregressive.models.registry import build_generator
from autoregressive.sampling import seeded_draw, settings_text
from autoregressive.tokenized import Tokenization, tokens_of
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.sizes import surveyed_tokenizer
from autoregressive.training.task import GeneratorTask, HeldOut, Preview
from engine.checkpoint.weights import num_parameters
from engine.data.classes import Classes
from engine.finite import NonFiniteValuesError
from engine.memory_plan import MemoryModel, Plan, report
from engine.messages import UserError
from engine.parallel import build_device
from engine.run_log import Run
from engine.seeds import torch_seed
from engine.trained_model import TrainedModel
from engine.without_storage import without_storage
from engine.world import World
from tokenizer.models.base import Tokenizer

PREVIEWS_PER_CLASS = 4
WEIGHT_BYTES = 4  # of a parameter in float32


def network_on_meta(config: GPTTrainConfig) -> Generator:
    """The network of a config, without memory or values. Raises ConfigError where its sizes do not fit together."""
    with without_storage():
        return build_generator(config.model)


def build_task(
    config: GPTTrainConfig,
    world: World,
    run: Run,
    tokenizer: Tokenizer,
    validation: HeldOut | None,
    tokenization: Tokenization | None = None,
    *,
    classes: Classes,
) -> GeneratorTask:
    """The network of a run, drawn with the seed on this rank's device, and the task that trains it.

    `tokenization` is for batches that have images; `classes` are those of the training images.
    """
    # The network.
    torch.manual_seed(torch_seed(config.loop.seed))
    with build_device(world, config.loop):
        network = build_generator(config.model)
        network.adopt_codes(tokenizer.quantizer)

    # Its training.
    trained = TrainedModel(
        network,
        config.optim,
        ema_decay=config.ema_decay,
        total_steps=config.loop.steps,
        world=world,
        parallel=config.loop,
    )
    return GeneratorTask(
        trained,
        name=config.model.name,
        world=world,
        precision=config.loop.precision,
        validation=validation,
        num_validation=config.validation.num_images,
        batch_size=config.validation.batch_size,
        preview=preview_grid(config, tokenizer, run, world, classes),
        tokenization=tokenization,
    )


def memory_plan(config: GPTTrainConfig, network: Generator, gpus: int) -> Plan:
    """The memory that training `network` (on the meta device) needs; see `memory_model`."""
    tokenizer, note = tokenizer_of_plan(config)
    plan = report(memory_model(config, network, gpus, tokenizer), config.loop, num_parameters(network))
    return plan.with_lines(after=note)


def tokenizer_of_plan(config: GPTTrainConfig) -> tuple[Tokenizer | None, str]:
    """The tokenizer that works in each training step, without storage, and what a user should know of it.

    None where codes are read, or where it is not there: a plan may be made before it is trained.
    """
    if config.data.tokenize == "codes":
        return None, ""
    try:
        tokenizer = surveyed_tokenizer(config.data)
    except UserError as error:
        return None, f"without the tokenizer, which is not ready here: {error}"
    return tokenizer, "" if tokenizer is not None else "without the tokenizer: data.tokenizer is empty"


def memory_model(
    config: GPTTrainConfig, network: Generator, gpus: int, tokenizer: Tokenizer | None = None
) -> MemoryModel:
    """The memory that training `network` (on the meta device) needs on `gpus` GPUs.

    A `tokenizer` that works in each step, on the meta device too, counts with its weights, and with what encoding holds
    where that is more than the activations of the generator. What a tokenizer needs for previews is left out.
    """

    def forward(batch: int) -> torch.Tensor:
        labels = torch.zeros(batch, dtype=torch.long)
        tokens = torch.zeros(batch, *network.token_shape, dtype=torch.long)
        return network.loss(network(labels, tokens), tokens)

    def encode(batch: int) -> torch.Tensor:
        return tokens_of(tokenizer, torch.zeros(batch, 3, tokenizer.image_size, tokenizer.image_size).byte())

    sizes = (config.loop.precision, config.data.global_batch_size, gpus)
    return MemoryModel.measure(
        network,
        forward,
        *sizes,
        ema=config.ema_decay > 0,
        beside=0 if tokenizer is None else WEIGHT_BYTES * num_parameters(tokenizer),
        before=None if tokenizer is None else (tokenizer, encode),
    )


def preview_grid(
    config: GPTTrainConfig, tokenizer: Tokenizer, run: Run, world: World, classes: Classes
) -> Preview | None:
    """A function that writes a grid of samples, one row of four per class; None if no classes are asked for."""
    if config.validation.preview_classes == 0:
        return None
    guidance = Guidance(scale=config.validation.guidance_scale)

    def write(network: Generator, name: str) -> None:
        num_classes = min(config.validation.preview_classes, network.num_classes)
        labels = torch.arange(num_classes, device=world.device).repeat_interleave(PREVIEWS_PER_CLASS)
        draw = seeded_draw(config.loop.seed, torch.arange(len(labels)), network.num_draws)
        try:
            tokens = draw_tokens(network, labels, draw=draw, guidance=guidance)
            names = [classes.shown_name(label) for label in range(num_classes)]
            settings = settings_text(guidance_scale=guidance.scale, seed=config.loop.seed)
            caption = f"Generated in training ({name}): one class per row, not selected; {settings}."
            run.save_grid(name, tokenizer.decode_indices(tokens), PREVIEWS_PER_CLASS, names, caption)
        except NonFiniteValuesError as error:  # the training goes on: its own guard decides about updates
            run.log(f"warning: no preview {name}: {error}")

    return write
