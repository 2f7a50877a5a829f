"""AdamW and its schedule, as a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine.messages import ConfigError
from engine.registry import lookup

if TYPE_CHECKING:
    pass
from engine.schedules import SCHEDULES


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule. Steps are optimizer updates."""

    lr: float = 1e-4  # base learning rate, after warm-up
    end_lr: float = 0.0  # learning rate at the end of the schedule
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    decay_params: Literal["all", "matrices"] = "all"  # which parameters decay: all, or those with 2 or more dimensions
    max_grad_norm: float = 10.0  # global gradient norm; 0 = no clipping
    schedule: str = "cosine"  # constant | cosine | wsd | linear
    warmup_steps: int = 0
    warmup_start: float = 0.01  # share of lr that the warm-up starts from
    hold_fraction: float = 0.0  # linear only: share of the run after the warm-up that stays at lr
    end_at_last: bool = False  # cosine, linear: the last update has end_lr (as WeTok), not the one that would follow it
    decay_fraction: float = 0.2  # wsd only: share of the run that is the cool-down
    max_bad_steps: int = 20  # steps in a row with a non-finite gradient before the run stops
    lr_after_step: bool = False  # compat: set it after the update, as the released trainer does (the first is at lr)

    def __post_init__(self) -> None:
        lookup(SCHEDULES, self.schedule, "optim.schedule")
        if not self.lr >= 0 or not self.end_lr >= 0:
            raise ConfigError(f"optim.lr={self.lr} and optim.end_lr={self.end_lr} must be 0 or more")
        for name in ("decay_fraction", "warmup_start"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name}={getattr(self, name)} must lie in 0..1")
        if not 0 <= self.hold_fraction < 1:
            raise ConfigError(f"optim.hold_fraction={self.hold_fraction} must lie in [0, 1)")
        if not all(0 <= beta < 1 for beta in self.betas) or self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ConfigError(
                f"optim.betas={self.betas} must lie in [0, 1), optim.weight_decay and optim.max_grad_norm be 0 or more"
            )
        if self.warmup_steps < 0 or self.max_bad_steps < 1:
            raise ConfigError("optim.warmup_steps must be 0 or more, optim.max_bad_steps 1 or more")
