"""Classifier-free guidance: its scale as a function of the token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from engine.validation import Problem, Section, at_least, is_number, one_of

FIRST_TOKENS = ("full", "schedule")  # values of `Guidance.first_token`


@dataclass(kw_only=True, slots=True, frozen=True)
class Guidance(Section):
    """Classifier-free guidance: logits = uncond + s (cond - uncond), s = 1 is off.

    `constant`: s everywhere. `step`: s from ratio `start` on, `unguided_scale` before. `linear`: rises from
    `unguided_scale` by s - 1. The ratio of token t of N is t / (N - 1). As released, the first token has the full scale
    under these schedules (`first_token`).

    `power_cosine` (RAR, arXiv:2411.00776): 1 + (s - 1) (1 - cos(pi (t / N)^power)) / 2. Its first token is not guided.
    `rising` (BAR, arXiv:2602.09024): 1 + (s - 1) t / N. Neither is the first one here.
    """

    scale: float | tuple[float, ...] = 1.0  # or one per index of a token
    schedule: str = "constant"
    start: float = 0.18  # step only
    first_token: Literal["full", "schedule"] = "full"
    unguided_scale: float = 1.0  # the released code uses 1.0001
    power: float = 1.0  # power_cosine only: larger ones begin later
    last_guided: int = -1  # number of the last guided token, minus 1, as `--cfg-interval` counts; -1 = all are guided

    def problems(self) -> Iterator[Problem]:
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not all(is_number(scale) and 1 <= scale < math.inf for scale in scales):
            yield Problem("scale", self.scale, "1 (off) or more, and finite; or a tuple of such numbers")
        yield from one_of(self, "schedule", GUIDANCE_SCHEDULES)
        if not (is_number(self.start) and math.isfinite(self.start)):
            yield Problem("start", self.start, "a finite number; above 1 guides no token but the first")
        yield from one_of(self, "first_token", FIRST_TOKENS)
        if not (is_number(self.unguided_scale) and 0 <= self.unguided_scale < math.inf):
            yield Problem("unguided_scale", self.unguided_scale, "0 or more and finite; 1 is off")
        if not (is_number(self.power) and 0 < self.power < math.inf):
            yield Problem("power", self.power, "above 0 and finite")
        yield from at_least(self, "last_guided", -1)

    def scales(self, num_tokens: int) -> list[float]:
        """The scale of each token, for a `scale` that is one number."""
        if self.scale == 1:
            return [1.0] * num_tokens

        schedule = GUIDANCE_SCHEDULES[self.schedule]
        scales = [schedule(self, token, num_tokens) for token in range(num_tokens)]
        if self.first_token == "full" and self.schedule not in FIRST_UNGUIDED:
            scales[0] = self.scale
        if self.last_guided > -1:
            scales = [scale if t <= self.last_guided + 1 else 1.0 for t, scale in enumerate(scales)]
        return scales


def _ratio(token: int, num_tokens: int) -> float:
    """Where a token stands in its image: 0 for the first, 1 for the last."""
    return token / max(1, num_tokens - 1)


def _constant(guidance: Guidance, token: int, num_tokens: int) -> float:
    return guidance.scale


def _step(guidance: Guidance, token: int, num_tokens: int) -> float:
    return guidance.scale if guidance.start <= _ratio(token, num_tokens) else guidance.unguided_scale


def _linear(guidance: Guidance, token: int, num_tokens: int) -> float:
    return guidance.unguided_scale + (guidance.scale - 1) * _ratio(token, num_tokens)


def _power_cosine(guidance: Guidance, token: int, num_tokens: int) -> float:
    angle = math.pi * (token / num_tokens) ** guidance.power
    return 1 + (guidance.scale - 1) * (1 - math.cos(angle)) / 2


def _rising(guidance: Guidance, token: int, num_tokens: int) -> float:
    return 1 + (guidance.scale - 1) * token / num_tokens


GUIDANCE_SCHEDULES: dict[str, Callable[[Guidance, int, int], float]] = {
    "constant": _constant, "step": _step, "linear": _linear, "power_cosine": _power_cosine, "rising": _rising
}  # fmt: skip
FIRST_UNGUIDED = {"power_cosine", "rising"}  # schedules that leave the first token alone, whatever `first_token` says

UNGUIDED = Guidance()
