"""Schedules: the learning rate and the weight decay as pure functions of the step.

`SCHEDULES` holds what follows the warm-up, by name. Each is a function `(step, total, config) -> learning rate`, where
`step` counts optimizer steps from 0 and `total` is the step at which the schedule ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol


class ScheduleConfig(Protocol):
    """The part of an optimizer's config that a schedule needs; see `engine.optim.OptimConfig`."""

    lr: float
    end_lr: float
    schedule: str
    warmup_steps: int
    warmup_start: float
    hold_fraction: float
    decay_fraction: float
    end_at_last: bool


def _constant(step: int, total: int, config: ScheduleConfig) -> float:
    """Stays at `lr`."""
    return config.lr


def _progress(step: int, total: int, config: ScheduleConfig) -> float:
    """The fraction of the steps after the warm-up that have passed; a run may be shorter than its warm-up."""
    return (step - config.warmup_steps) / max(1, total - config.warmup_steps)


def _cosine(step: int, total: int, config: ScheduleConfig) -> float:
    """Falls to `end_lr` along half a period of a cosine."""
    if step >= total:
        return config.end_lr
    progress = _progress(step, total, config)
    return config.end_lr + 0.5 * (config.lr - config.end_lr) * (1 + math.cos(math.pi * progress))


def _wsd(step: int, total: int, config: ScheduleConfig) -> float:
    """Holds `lr`, then falls to `end_lr` as 1 - sqrt over the last `decay_fraction` of the run.

    Source: GigaTok (arXiv:2504.08736), section 4.
    """
    num_decay_steps = int(config.decay_fraction * total)
    first_decay_step = total - num_decay_steps
    if step < first_decay_step or num_decay_steps == 0:
        return config.lr
    remaining = max(0.0, 1 - math.sqrt((step - first_decay_step) / num_decay_steps))
    return config.end_lr + (config.lr - config.end_lr) * remaining


def _linear(step: int, total: int, config: ScheduleConfig) -> float:
    """Holds `lr` for `hold_fraction` of the steps after the warm-up, then falls to `end_lr` along a line."""
    progress = _progress(step, total, config)
    progress = max(0.0, progress - config.hold_fraction) / (1 - config.hold_fraction)
    return config.lr + (config.end_lr - config.lr) * min(1.0, progress)


SCHEDULES: dict[str, Callable[[int, int, ScheduleConfig], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "wsd": _wsd,
    "linear": _linear,
}


def learning_rate(step: int, total: int, config: ScheduleConfig) -> float:
    """The learning rate of `step` (from 0) in a run of `total` steps.

    The warm-up rises along a line from `warmup_start` * `lr` at step 0 to `lr` at step `warmup_steps`; then the
    schedule takes over.
    """
    if step < config.warmup_steps:
        fraction = step / config.warmup_steps
        return config.lr * (fraction + (1 - fraction) * config.warmup_start)

    end_step = total - 1 if config.end_at_last else total
    return SCHEDULES[config.schedule](step, end_step, config)


def weight_decay(step: int, total: int, start: float, end: float) -> float:
    """The weight decay of `step` (from 0) in a run of `total` steps: from `start` to `end`, which the last step has.

    It follows half a period of a cosine and knows no warm-up.
    """
    progress = min(1.0, step / max(1, total - 1))
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))
