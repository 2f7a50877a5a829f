"""The `optim` section of a training config: AdamW, gradient clipping and the learning-rate schedule.

`engine.trained_model.TrainedModel` builds the optimizer from it; `engine.schedules` turns it into a learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.schedules import SCHEDULES
from engine.validation import Problem, Section, at_least, in_range, one_of


@dataclass(kw_only=True, slots=True)
class OptimConfig(Section):
    """AdamW and its schedule. Steps are optimizer steps."""

    lr: float = 1e-4  # base learning rate, after the warm-up
    end_lr: float = 0.0  # learning rate at the end of the schedule
    betas: tuple[float, float] = (0.9, 0.95)  # decay of the first and second moments, per step
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 1e-4  # decoupled: every step multiplies weights by 1 - learning rate * this
    end_weight_decay: float | None = None  # weight decay of the last step, reached along a cosine; null: it is constant
    decay_params: Literal["all", "matrices"] = "all"  # which parameters decay: all, or those with 2 or more dimensions
    max_grad_norm: float = 10.0  # clip gradients to this global norm; 0 = no clipping
    schedule: str = "cosine"  # constant | cosine | wsd | linear
    warmup_steps: int = 0  # steps of linear warm-up before the schedule
    warmup_start: float = 0.01  # fraction of lr that the warm-up starts from
    hold_fraction: float = 0.0  # linear only: fraction of the steps after the warm-up that stay at lr
    end_at_last: bool = False  # cosine, linear: the last step has end_lr (as WeTok), not the one that would follow it
    decay_fraction: float = 0.2  # wsd only: fraction of the run that is the cool-down
    max_bad_steps: int = 20  # steps in a row with a non-finite gradient before the run stops
    lr_after_step: bool = False  # compat: set lr after the step, as the released trainer does (the first step is at lr)

    def problems(self) -> Iterator[Problem]:
        """Values out of range, and a schedule that does not exist."""
        for name in ("lr", "end_lr", "weight_decay", "max_grad_norm", "warmup_steps"):
            yield from at_least(self, name, 0)
        if self.end_weight_decay is not None:
            yield from at_least(self, "end_weight_decay", 0)
        yield from at_least(self, "max_bad_steps", 1)
        for name in ("warmup_start", "decay_fraction"):
            yield from in_range(self, name, 0, 1)
        yield from in_range(self, "hold_fraction", 0, 1, open_right=True)
        if not all(0 <= beta < 1 for beta in self.betas):
            yield Problem("betas", list(self.betas), "two numbers in [0, 1)")
        yield from one_of(self, "schedule", SCHEDULES)
