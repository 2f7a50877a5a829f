"""Checks of a tokenizer run that single config sections cannot make, before any data or memory is touched."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch

from engine import plugins
from engine.averages import average_warnings
from engine.data.sources import unused_keys
from engine.messages import ConfigError
from engine.registry import selected_section
from engine.validation import raise_problems
from engine.without_storage import without_storage
from tokenizer.discriminators.registry import DISCRIMINATORS, DiscriminatorConfig
from tokenizer.losses.semantic import TEACHERS
from tokenizer.losses.terms import QUANTIZER_TERMS, Term, loss_terms
from tokenizer.models.base import Tokenizer
from tokenizer.models.registry import MODELS, build_tokenizer
from tokenizer.quantizers.base import Quantizer
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.phases import phases_of
from tokenizer.training.unmoved import unmoved_warnings


def network_on_meta(config: TokenizerTrainConfig) -> Tokenizer:
    """The network of a run without storage, to ask what it needs. Draws no random numbers."""
    with without_storage():
        return build_network(config)


def build_network(config: TokenizerTrainConfig) -> Tokenizer:
    """The network of a run; what the run does not train is frozen. Raises ConfigError where that cannot be."""
    network = build_tokenizer(config.model, config.data.image_size)
    if config.train_parts == "decoder":
        network.train_decoder_alone()
    return network


def terms_of(config: TokenizerTrainConfig, network: Tokenizer) -> list[Term]:
    """The loss terms of a run of `network`."""
    return loss_terms(
        config.loss,
        semantic_weight=config.semantic.weight if config.semantic.teacher else 0.0,
        warmup_steps=config.warmup_steps,
        quantizer_losses=network.trained_quantizer_losses,
        quantizer_defaults=network.quantizer.loss_weights,
        decodes_prefixes=network.decodes_prefixes,
        network_losses=network.loss_weights,
    )


def validate(config: TokenizerTrainConfig) -> Tokenizer:
    """Checks a config, all its phases, and returns the network of the last phase, on the meta device.

    Raises ConfigError with all problems that were found; what several phases have in common is told once.
    """
    phase_of_problem: dict[str, int] = {}  # problem -> number of the first phase that has it
    network = None
    phases = phases_of(config)
    for number, phase in enumerate(phases):
        problems, network = _check_phase(phase)
        for problem in problems:
            phase_of_problem.setdefault(problem, number)

    # A discriminator may start in a later phase than the first.
    total_steps = sum(phase.loop.steps for phase in phases)
    common = list(_late_start_problems(config.loss.discriminator, total_steps))
    if config.phases:
        raise_problems([*common, *(f"phases[{number}]: {problem}" for problem, number in phase_of_problem.items())])
    raise_problems([*common, *phase_of_problem])
    return network


def warnings_of(config: TokenizerTrainConfig) -> list[str]:
    """What a valid training (one phase) should be told about, such as a codebook that nothing moves."""
    network = network_on_meta(config)
    warnings = [*unmoved_warnings(config, network, terms_of(config, network)), *network.quantizer.warnings()]
    if not config.init:  # later averages start from trained ones
        warnings += average_warnings(config.ema_decay, config.loop.last_step)
    return warnings


def _check_phase(config: TokenizerTrainConfig) -> tuple[list[str], Tokenizer | None]:
    """(problems, network on the meta device) of one training; None where the network cannot be built."""
    # The sections as they are.
    problems = [*unused_keys(config.data), *_discriminator_problems(config)]
    if config.train_parts == "decoder" and not config.init:
        problems.append("train_parts=decoder needs a trained encoder and quantizer: name a tokenizer as init")
    if config.model.name in MODELS:
        problems += [*_section_problems(config), *_capability_problems(config)]

    # The network that they describe, where they describe one.
    network = None
    try:
        network = network_on_meta(config)
    except ConfigError as error:
        problems += error.problems
    problems += _warmup_problems(config, network)
    if network is not None:
        problems += _quantizer_problems(config, network)
        if not terms_of(config, network):
            problems.append("every loss weight is 0; there is nothing to train")
    return problems, network


def _section_problems(config: TokenizerTrainConfig) -> Iterator[str]:
    """What the model's own class has against training with its section."""
    name = config.model.name
    section = getattr(config.model, name)
    for problem in MODELS[name].training_problems(section, starts_from_weights=bool(config.init)):
        yield problem.text(f"model.{name}")


def _warmup_problems(config: TokenizerTrainConfig, network: Tokenizer | None) -> Iterator[str]:
    """A warm-up of the quantizer that never ends, or gives it too few latents."""
    quantizer = config.model.quantizer
    key = f"model.quantizer.{quantizer.name}.warmup_steps"
    if config.warmup_steps >= config.loop.steps:
        yield f"{key}={quantizer.warmup_steps} must be below loop.steps={config.loop.steps}"
    elif network is not None and config.warmup_steps > 0:
        # While a discriminator trains alone, the tokenizer leaves no latents.
        discriminator = config.loss.discriminator
        num_alone = sum(discriminator.is_warmup(step) for step in range(config.warmup_steps))
        num_latents = (config.warmup_steps - num_alone) * config.data.global_batch_size * network.num_tokens
        try:
            network.quantizer.require_warmup(num_latents)
        except ConfigError as error:
            reason = ""
            if num_alone > 0:
                reason = (
                    f"; {key}={config.warmup_steps}, and in {num_alone} of these updates "
                    f"loss.discriminator.warmup_steps={discriminator.warmup_steps} (from update "
                    f"{discriminator.start_step} on) trains the discriminator alone, which leaves no latents: raise "
                    f"loss.discriminator.start_step above {config.warmup_steps}"
                )
            yield f"model.quantizer.{quantizer.name}: {error}{reason}"


def _capability_problems(config: TokenizerTrainConfig) -> Iterator[str]:
    """Settings that the model has no use for, and a teacher that does not fit it."""
    name = config.model.name
    section = getattr(config.model, name)
    capabilities = MODELS[name].capabilities_of(section)
    if config.loss.shortcut.end_step > 0 and "shortcut" not in capabilities:
        yield f"loss.shortcut.end_step={config.loss.shortcut.end_step}: model.name={name} has no shortcut; use 0"
    if not config.semantic.enabled:
        return

    teacher = config.semantic.teacher
    teacher_dim = TEACHERS[teacher].dim
    semantic_dim = MODELS[name].semantic_dim_of(section)
    if "semantic" not in capabilities:
        yield f"semantic.teacher={teacher} is set, but this model ({name}) has no semantic head"
    elif semantic_dim != teacher_dim:
        yield f"model.{name}.semantic_dim={semantic_dim}, but semantic.teacher={teacher} has {teacher_dim} channels"


def _quantizer_problems(config: TokenizerTrainConfig, network: Tokenizer) -> Iterator[str]:
    """Weights of losses that the quantizer does not compute, and memory that its entropy loss needs."""
    quantizer = network.quantizer
    name = config.model.quantizer.name

    # The entropy loss: the quantizer must have one, and memory for it.
    entropy_weight = config.loss.entropy_weight
    if entropy_weight > 0 and "entropy" not in quantizer.loss_names:
        yield f"loss.entropy_weight={entropy_weight}: {name} has no entropy loss; use 0"
    elif entropy_weight > 0:
        try:
            quantizer.require_memory(network.num_tokens)
        except ConfigError as error:
            yield str(error)

    # Random choices, whose numbers come with the images.
    passed_on = inspect.signature(network.forward).parameters
    if quantizer.takes_random_bits and "random_bits" not in passed_on:
        yield (
            f"{name} takes random numbers of each image in training, which the tokenizer {config.model.name} does not "
            "pass on; switch that off in the quantizer's section"
        )

    # Losses that the quantizer names itself.
    named_losses = sorted(quantizer.loss_names - set(QUANTIZER_TERMS))
    for loss in config.loss.quantizer_weights:
        if loss not in named_losses:
            accepted = ", ".join(named_losses) or "none"
            yield f"loss.quantizer_weights.{loss}: {name} has no such loss (accepted here: {accepted})"
    for loss in named_losses:
        if loss not in {*config.loss.quantizer_weights, *quantizer.loss_weights}:
            yield f"{name} has a loss {loss} without a weight; set loss.quantizer_weights.{loss} (0 switches it off)"

    # The project's own quantizers are tested for it.
    if plugins.loaded():
        yield from _shape_problems(quantizer, name)


def _shape_problems(quantizer: Quantizer, name: str) -> Iterator[str]:
    """A quantizer whose results do not have the shapes of its contract, found without storage."""
    latents = torch.empty(1, 4, quantizer.codebook_dim, device="meta")
    index_shape = (1, 4) if quantizer.num_groups == 1 else (1, 4, quantizer.num_groups)
    try:
        with without_storage():
            quantized = quantizer.eval()(latents)
    except (NotImplementedError, RuntimeError):  # it needs values, which a network without storage does not have
        return

    # What came out.
    if quantized.z_q.shape != latents.shape:
        yield (
            f"{name} returned z_q of shape {tuple(quantized.z_q.shape)} for latents of shape {tuple(latents.shape)}; "
            "both must have codebook_dim channels"
        )
    if quantized.indices.shape != index_shape or quantized.indices.dtype != torch.int64:
        description = f"{quantized.indices.dtype} of shape {tuple(quantized.indices.shape)}"
        yield f"{name} returned indices {description}; they must be torch.int64 of shape {index_shape}"


def _late_start_problems(discriminator: DiscriminatorConfig, total_steps: int) -> Iterator[str]:
    """A discriminator that never starts, or never meets the tokenizer."""
    if not discriminator.enabled or discriminator.first_judged_step <= total_steps:
        return
    if discriminator.start_step > total_steps:
        yield (
            f"loss.discriminator.start_step={discriminator.start_step}, but the training ends after {total_steps} "
            f"steps: the discriminator {discriminator.name} never starts; lower start_step, or set "
            "loss.discriminator.name=none"
        )
        return
    yield (
        f"loss.discriminator.warmup_steps={discriminator.warmup_steps} from update {discriminator.start_step} on: the "
        f"training ends after {total_steps} steps, before the tokenizer meets the discriminator; use fewer"
    )


def _discriminator_problems(config: TokenizerTrainConfig) -> Iterator[str]:
    """Images that are too small, or a section that is not in use."""
    discriminator = config.loss.discriminator
    if not discriminator.enabled:
        return
    try:
        section = selected_section(discriminator, DISCRIMINATORS, "loss.discriminator")
    except ConfigError as error:
        yield str(error)
        return
    needed = DISCRIMINATORS[discriminator.name].min_image_size(section)
    if config.data.image_size < needed:
        yield (
            f"data.image_size={config.data.image_size} is too small for the discriminator {discriminator.name}, which "
            f"needs {needed} pixels; change loss.discriminator.{discriminator.name}"
        )
