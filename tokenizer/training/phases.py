"""Training in phases: each starts from the end of the one before, in a folder of its own under `loop.run_dir`."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

from engine.checkpoint.manifest import checkpoint_folders, phase_folders, read_manifest
from engine.counts import counted
from engine.loop import TrainLoopConfig
from engine.messages import ConfigError
from tokenizer.losses.terms import LossConfig
from tokenizer.models.registry import MODELS, ModelConfig
from tokenizer.training.config import PhaseConfig, TokenizerTrainConfig


def phases_of(config: TokenizerTrainConfig) -> list[TokenizerTrainConfig]:
    """The configs of the phases in `<run_dir>/phase_1`, `phase_2`, ...; `config` itself where it names none.

    Raises ConfigError where the model cannot do what a phase asks for.
    """
    phases: list[TokenizerTrainConfig] = []
    for number, phase in enumerate(config.phases, start=1):
        previous = phases[-1] if phases else None
        steps_before = sum(earlier.loop.steps for earlier in phases)
        phases.append(
            replace(
                config,
                phases=[],
                init=previous.loop.run_dir if previous else config.init,
                loop=_loop_of_phase(config.loop, number, steps_before, phase.steps),
                optim=replace(config.optim, lr=phase.lr),
                model=_model_of_phase(previous.model if previous else config.model, phase, number),
                loss=_loss_after(steps_before, config.loss),
                train_parts=phase.train_parts or config.train_parts,
            )
        )
    return phases or [config]


def _loop_of_phase(loop: TrainLoopConfig, number: int, steps_before: int, steps: int) -> TrainLoopConfig:
    """The loop section of a phase of `steps` updates. `loop.stop_at` counts over all phases, as losses do."""
    stop_at = loop.stop_at - steps_before
    is_inside = 0 < stop_at < steps
    return replace(loop, run_dir=f"{loop.run_dir}/phase_{number}", steps=steps, stop_at=stop_at if is_inside else 0)


def phases_until_stop(config: TokenizerTrainConfig) -> list[TokenizerTrainConfig]:
    """The phases that begin before `loop.stop_at`; all of them where it is off."""
    phases = phases_of(config)
    starts = itertools.accumulate((phase.loop.steps for phase in phases), initial=0)
    return [phase for phase, start in zip(phases, starts, strict=False) if start < (config.loop.stop_at or math.inf)]


def _model_of_phase(model: ModelConfig, phase: PhaseConfig, number: int) -> ModelConfig:
    """The model section of a phase, from that of the phase before: the model's class says what changes."""
    model = copy.deepcopy(model)
    section = getattr(model, model.name)
    try:
        changed = MODELS[model.name].section_of_phase(section, phase.generative_decoder)
    except ValueError as error:
        raise ConfigError(
            f"phases[{number - 1}].generative_decoder={phase.generative_decoder} with model.name={model.name}: {error}"
        ) from error
    setattr(model, model.name, changed)
    return model


def _loss_after(steps: int, loss: LossConfig) -> LossConfig:
    """The loss of a phase that begins after `steps` updates: where terms begin and end counts over all phases."""
    start_step = max(1, loss.discriminator.start_step - steps)
    warmup_steps = max(0, loss.discriminator.first_judged_step - steps - start_step)
    discriminator = replace(loss.discriminator, start_step=start_step, warmup_steps=warmup_steps)
    shortcut = replace(loss.shortcut, end_step=max(0, loss.shortcut.end_step - steps))
    return replace(loss, discriminator=discriminator, shortcut=shortcut)


def steps_done(run_dir: str | Path) -> int:
    """The step of the newest checkpoint of a run; 0 without one."""
    folders = checkpoint_folders(Path(run_dir))
    return read_manifest(folders[-1])["step"] if folders else 0


def check_trained_phases(config: TokenizerTrainConfig, phases: list[TokenizerTrainConfig]) -> None:
    """Compares the phases on disk with those of the config.

    Raises ConfigError where a later phase began from another end of an earlier one than the config now says.
    """
    # No more phases on disk than in the config.
    folders = phase_folders(Path(config.loop.run_dir))
    if folders and len(folders) > len(config.phases):
        raise ConfigError(
            f"{folders[-1]} was trained, but the config has {counted(len(config.phases), 'phase')}; use a new run_dir"
        )

    # A phase that another one began from keeps its length.
    for phase, later in itertools.pairwise(phases):
        steps = steps_done(phase.loop.run_dir)
        has_successor = steps_done(later.loop.run_dir) > 0
        if has_successor and steps != phase.loop.steps:
            raise ConfigError(
                f"{phase.loop.run_dir} ends at step {steps}, its phase has {phase.loop.steps} steps, but "
                f"{later.loop.run_dir} begins there: trained phases keep their length; use another loop.run_dir"
            )
        if steps > phase.loop.steps:
            raise ConfigError(
                f"{phase.loop.run_dir} was trained for {steps} steps, its phase has {phase.loop.steps}: "
                "trained phases keep their length; use another loop.run_dir"
            )
