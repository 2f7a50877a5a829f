"""Classifier-free guidance: its scale as a function of the token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engine.messages import ConfigError
from engine.registry import lookup


@dataclass(kw_only=True, slots=True, frozen=True)
class Guidance:
    """Classifier-free guidance: logits = uncond + s (cond - uncond), s = 1 is off.

    `constant`: s everywhere. `step`: s from ratio `start` on, `unguided_scale` before. `linear`: rises from 1 to s. The
    ratio of token t of N is t / (N - 1). As released, the first token has the full scale under every schedule
    (`first_token`).
    """

    scale: float | tuple[float, ...] = 1.0  # or one for each index of a token
    schedule: str = "constant"
    start: float = 0.18  # step only
    first_token: Literal["full", "schedule"] = "full"
    unguided_scale: float = 1.0  # the released code uses 1.0001
    # tokens after number last_guided + 1 use the conditional logits only (`--cfg-interval`); -1 = none
    last_guided: int = -1

    def __post_init__(self) -> None:
        lookup(GUIDANCE_SCHEDULES, self.schedule, "guidance_schedule")
        if not all(1 <= s < math.inf for s in (self.scale if isinstance(self.scale, tuple) else (self.scale,))):
            raise ConfigError(f"guidance_scale={self.scale} must be 1 (off) or more")

    def scales(self, num_tokens: int) -> list[float]:
        """The scale of each token."""
        if self.scale == 1:
            return [1.0] * num_tokens
        ratios = [t / max(1, num_tokens - 1) for t in range(num_tokens)]
        scales = [GUIDANCE_SCHEDULES[self.schedule](self, ratio) for ratio in ratios]
        if self.first_token == "full":
            scales[0] = self.scale
        if self.last_guided > -1:
            scales = [s if t <= self.last_guided + 1 else 1.0 for t, s in enumerate(scales)]
        return scales


def _step(guidance: Guidance, ratio: float) -> float:
    return guidance.scale if guidance.start <= ratio else guidance.unguided_scale


def _linear(guidance: Guidance, ratio: float) -> float:
    return guidance.unguided_scale + (guidance.scale - 1) * ratio


GUIDANCE_SCHEDULES: dict[str, Callable[[Guidance, float], float]] = {
    "constant": lambda guidance, ratio: guidance.scale,
    "step": _step,
    "linear": _linear,
}

UNGUIDED = Guidance()
