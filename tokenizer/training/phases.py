"""Trainings one after the other, each from the end of the one before."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path

from engine.checkpoint.manifest import checkpoint_folders, phase_folders, read_manifest
from engine.messages import ConfigError
from tokenizer.losses.terms import LossConfig
from tokenizer.training.config import TokenizerTrainConfig


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
