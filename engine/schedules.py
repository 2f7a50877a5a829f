"""Learning-rate schedules: the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.optim import OptimConfig


def _constant(step: int, total: int, config: OptimConfig) -> float:
    return config.lr


def _cosine(step: int, total: int, config: OptimConfig) -> float:
    if step >= total:
        return config.end_lr
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.end_lr + 0.5 * (config.lr - config.end_lr) * (1 + math.cos(math.pi * progress))


def _wsd(step: int, total: int, config: OptimConfig) -> float:
    """Warm-up, hold, then 1 - sqrt down to `end_lr` over the last `decay_fraction` of the run (GigaTok, section 4)."""
    num_decay = int(config.decay_fraction * total)
    hold = total - num_decay
    if step < hold or num_decay == 0:
        return config.lr
    return config.end_lr + (config.lr - config.end_lr) * max(0.0, 1 - math.sqrt((step - hold) / num_decay))


def _linear(step: int, total: int, config: OptimConfig) -> float:
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    progress = max(0.0, progress - config.hold_fraction) / (1 - config.hold_fraction)
    return config.lr + (config.end_lr - config.lr) * min(1.0, progress)


SCHEDULES: dict[str, Callable[[int, int, OptimConfig], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "wsd": _wsd,
    "linear": _linear,
}


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """Learning rate of update number `step` (0-based) of `total`. Warm-up rises from `warmup_start` times lr to lr."""
    if step < config.warmup_steps:
        share = step / config.warmup_steps
        return config.lr * (share + (1 - share) * config.warmup_start)
    return SCHEDULES[config.schedule](step, total - config.end_at_last, config)
