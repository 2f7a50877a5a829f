"""Builds what a run of a generator needs: its network and task, its previews and memory plan; and checks the codes."""

from __future__ import annotations

from dataclasses import replace

import torch

from autoregressive.codes import CodesError, CodeStore
from autoregressive.generate import draw_tokens
from autoregressive.guidance import Guidance
from autoregressive.models.base import DataSizes, Generator
from autoregressive.models.registry import build_generator, completed
from autoregressive.sampling import seeded_draw
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.task import GeneratorTask, Preview
from engine.checkpoint.weights import num_parameters
from engine.data.classes import count_problem
from engine.finite import NonFiniteValuesError
from engine.memory_plan import MemoryModel, report
from engine.parallel import build_device
from engine.run_log import Run
from engine.seeds import torch_seed
from engine.trained_model import TrainedModel
from engine.validation import raise_problems
from engine.without_storage import without_storage
from engine.world import World
from tokenizer.models.base import Tokenizer

PREVIEWS_PER_CLASS = 4


def network_on_meta(config: GPTTrainConfig) -> Generator:
    """The network of a config, without memory or values. Raises ConfigError where its sizes do not fit together."""
    with without_storage():
        return build_generator(config.model)


def with_sizes_of(config: GPTTrainConfig, store: CodeStore) -> GPTTrainConfig:
    """`config` with the sizes that its model leaves open (codebooks, tokens, classes) as the codes have them.

    The result is what a run records, so that its checkpoints need no codes.
    """
    manifest = store.manifest
    sizes = DataSizes(manifest.index_sizes, manifest.num_tokens, len(store.classes))
    return replace(config, model=completed(config.model, sizes))


def with_sizes_of_present_codes(config: GPTTrainConfig) -> GPTTrainConfig:
    """`config` with the sizes that it leaves open as its codes have them; as it is where these cannot be read."""
    if not config.data.codes:
        return config
    try:
        return with_sizes_of(config, CodeStore(config.data.codes, "train"))
    except CodesError:  # the pre-flight tells what is wrong with them
        return config


def build_task(
    config: GPTTrainConfig, world: World, run: Run, tokenizer: Tokenizer, validation: CodeStore | None
) -> GeneratorTask:
    """The network of a run, drawn with the seed on this rank's device, and the task that trains it."""
    # The network.
    torch.manual_seed(torch_seed(config.loop.seed))
    with build_device(world, config.loop):
        network = build_generator(config.model)

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
        preview=preview_grid(config, tokenizer, run, world),
    )


def memory_plan(config: GPTTrainConfig, network: Generator, gpus: int) -> str:
    """The memory that training `network` (on the meta device) needs; see `memory_model`."""
    return report(memory_model(config, network, gpus), config.loop, num_parameters(network))


def memory_model(config: GPTTrainConfig, network: Generator, gpus: int) -> MemoryModel:
    """The memory that training `network` (on the meta device) needs on `gpus` GPUs.

    That of the tokenizer for previews is left out.
    """

    def forward(batch: int) -> torch.Tensor:
        labels = torch.zeros(batch, dtype=torch.long)
        tokens = torch.zeros(batch, *network.token_shape, dtype=torch.long)
        return network.loss(network(labels, tokens), tokens)

    sizes = (config.loop.precision, config.data.global_batch_size, gpus)
    return MemoryModel.measure(network, forward, *sizes, ema=config.ema_decay > 0, beside=0)


def check_codes(network: Generator, name: str, store: CodeStore) -> None:
    """Raises one ConfigError that lists all sizes of `network`, the generator `name`, that the codes do not have."""
    manifest = store.manifest
    sizes = {
        "codebook_sizes": (list(network.codebook_sizes), list(manifest.index_sizes)),
        "num_tokens": (network.num_tokens, manifest.num_tokens),
    }
    problems = [
        f"model.{name} has {key}={configured}, but {store.folder} has {stored}"
        for key, (configured, stored) in sizes.items()
        if configured != stored
    ]
    problem = count_problem(store.classes, network.num_classes, f"model.{name} has num_classes")
    if problem is not None:
        problems.append(problem)

    # The same sizes in another layout: a list of one index is not the same as a plain index.
    if not problems and network.token_shape != manifest.token_shape:
        problems.append(
            f"model.{name} is for tokens of shape {network.token_shape}, but {store.folder} has {manifest.token_shape}"
        )
    raise_problems(problems)


def preview_grid(config: GPTTrainConfig, tokenizer: Tokenizer, run: Run, world: World) -> Preview | None:
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
            run.save_grid(name, tokenizer.decode_indices(tokens), PREVIEWS_PER_CLASS)
        except NonFiniteValuesError as error:  # the training goes on: its own guard decides about updates
            run.log(f"warning: no preview {name}: {error}")

    return write
