"""What a recipe asks of a machine: its steps with their operations, its parameters, and its memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autoregressive.models.registry import GENERATORS
from autoregressive.training import build as generator_build
from autoregressive.training.config import GPTTrainConfig
from autoregressive.training.sizes import with_sizes_of_present_codes
from engine.checkpoint.weights import num_parameters
from engine.config import load_config
from engine.flops import PartFlops
from engine.loop import TrainLoopConfig
from engine.memory_plan import MemoryModel, Plan, report
from engine.messages import UserError
from engine.parallel import parallel_blocks
from evaluations.cost_model import Network
from evaluations.trainers import recipe_tree
from tokenizer.discriminators.base import Discriminator
from tokenizer.losses.semantic import build_teacher
from tokenizer.losses.terms import Term, active_terms
from tokenizer.training.build import loss_networks, memory_model
from tokenizer.training.checks import terms_of, validate
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.flops import step_flops
from tokenizer.training.phases import phases_until_stop


@dataclass(frozen=True)
class Stage:
    """Steps that do the same."""

    steps: int
    parts: tuple[PartFlops, ...]


@dataclass(frozen=True)
class Workload:
    """One training: a recipe, or a phase of it."""

    title: str
    batch: int  # images per step
    loop: TrainLoopConfig
    network: Network
    stages: tuple[Stage, ...]
    memory: MemoryModel

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def plan(self) -> Plan:
        """The memory that it needs on the GPUs that it was planned for, as `--plan` says it."""
        return report(self.memory, self.loop, self.network.parameters)


def workloads_of(files: Sequence[Path], overrides: Sequence[str], gpus: int) -> list[Workload]:
    """The trainings of YAML files (later ones win) that train a tokenizer or a generator, one per phase.

    `gpus` is the number of GPUs that the memory is planned for. Images are not looked for, and their places may need
    environment variables that are not set. Raises UserError for other YAML files, and for a network that does not count
    its operations.
    """
    tree = recipe_tree(files)
    name = " and ".join(map(str, files))
    if "codes" in tree.get("data", {}) or set(tree.get("model", {})) & set(GENERATORS):
        config = load_config(GPTTrainConfig, files, overrides, unset=[])
        return [_generator_workload(config, name, gpus)]
    if not {"model", "loss"} <= set(tree):
        raise UserError(
            f"{name} trains neither a tokenizer nor a generator: it has no section `loss`, and no `data.codes`"
        )
    config = load_config(TokenizerTrainConfig, files, overrides, validate, unset=[])
    phases = phases_until_stop(config)
    titles = [name] if len(phases) == 1 else [f"{name} phase {n}" for n in range(1, len(phases) + 1)]
    return [_tokenizer_workload(phase, title, gpus) for phase, title in zip(phases, titles, strict=True)]


def _generator_workload(config: GPTTrainConfig, title: str, gpus: int) -> Workload:
    config = with_sizes_of_present_codes(config)
    network = generator_build.network_on_meta(config)

    # A tokenizer that works in each step.
    tokenizer, note = generator_build.tokenizer_of_plan(config)
    title = f"{title} ({note})" if note else title
    encoding = () if tokenizer is None else _counted(tokenizer.encoding_flops(), title)
    stage = Stage(config.loop.last_step, (*encoding, *_counted(network.training_flops(), title)))
    sizes = _sizes(config, network, other_parameters=0)
    memory = generator_build.memory_model(config, network, gpus, tokenizer)
    return Workload(title, config.data.global_batch_size, config.loop, sizes, (stage,), memory)


def _tokenizer_workload(config: TokenizerTrainConfig, title: str, gpus: int) -> Workload:
    # The networks of the loss, for their sizes alone.
    network = validate(config)
    terms = terms_of(config, network)
    networks = loss_networks(config, {term.name for term in terms})
    perceptual, discriminator = networks
    teacher = None
    if config.semantic.enabled:
        with torch.device("meta"):
            stand_ins = type(config.assets)(random_stand_in=True)
            teacher = build_teacher(config.semantic, network.semantic_grid, stand_ins)

    def parts(active: frozenset[str]) -> tuple[PartFlops, ...]:
        judge = discriminator if isinstance(discriminator, Discriminator) else None
        flops = step_flops(network, perceptual, teacher, judge, active, config.data.image_size)
        return _counted(flops, title)

    stages = tuple(Stage(last - first, parts(active_terms(terms, first))) for first, last in _intervals(terms, config))
    sizes = _sizes(config, network, other_parameters=num_parameters(discriminator))
    memory = memory_model(config, network, networks, gpus)
    return Workload(title, config.data.global_batch_size, config.loop, sizes, stages, memory)


def _sizes(config: GPTTrainConfig | TokenizerTrainConfig, network: nn.Module, other_parameters: int) -> Network:
    """What the cost of training `network` depends on."""
    return Network(
        parameters=num_parameters(network),
        block_parameters=sum(num_parameters(block) for block in parallel_blocks(network, "shard")),
        other_parameters=other_parameters,
        has_average=config.ema_decay > 0,
        precision=config.loop.precision,
    )


def _intervals(terms: Sequence[Term], config: TokenizerTrainConfig) -> list[tuple[int, int]]:
    """(first step, first step after it) of the intervals in which the same terms are active."""
    steps = config.loop.last_step
    changes = {0, steps, *(term.first for term in terms), *(term.last + 1 for term in terms)}
    borders = sorted(int(step) for step in changes if step <= steps)
    return list(itertools.pairwise(borders))


def _counted(parts: tuple[PartFlops, ...] | None, title: str) -> tuple[PartFlops, ...]:
    """`parts`. Raises UserError where a network does not count them."""
    if parts is None:
        raise UserError(f"{title}: a network of this training does not count its operations (training_flops)")
    return parts
