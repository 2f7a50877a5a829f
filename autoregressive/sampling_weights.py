"""Which weights a generator samples with: the choice of a layout by measurement, and what other numbers change."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from autoregressive.models.base import Generator
from autoregressive.models.weight_layouts import (
    PLAIN,
    WEIGHT_LAYOUTS,
    Product,
    exact_layouts,
    laid_out,
    lay_out,
    require_layout,
)
from autoregressive.sampling import seeded_draw
from engine.devices import is_gpu
from engine.messages import logger
from engine.world import World

AUTO = "auto"  # the fastest of the layouts that give the same products, measured
MEASURED_BYTES = 2**28  # of weights that the measurement reads: far more than a cache holds
REPETITIONS = 6  # the first one warms up
PROBE_ROWS, PROBE_DRAWS = 8, 16  # of the measurement of a change
DIGITS = 2  # of the numbers that results are stamped with


def set_weight_layout(generator: Generator, name: str, rows: int, world: World) -> None:
    """Lays out the weights of `generator` as `name` says, for about `rows` rows at a time, and stamps it. A collective.

    `AUTO` takes the fastest of the layouts that give the same products. How far others are from the trained weights is
    measured and logged. Raises ConfigError where the layout cannot be computed.
    """
    if name == AUTO:
        name = fastest_layout(generator, rows, world)
    layers = generator.layout_layers()
    require_layout(layers, name)
    if name == PLAIN:
        return

    facts: dict[str, Any] = {"weight_layout": name}
    if WEIGHT_LAYOUTS[name].is_exact:
        lay_out(layers, name, rows)
    else:
        before = probe(generator)
        lay_out(layers, name, rows)
        facts |= changes(before, probe(generator, before))
        logger.info(
            "weights in %s: log-probabilities change by up to %g, the most probable code in %g of the first draws",
            name,
            facts["log_p_change"],
            facts["argmax_change"],
        )
    generator.weight_facts = facts


# ------------------------------------------------------------------------------------------------ the fastest layout
def fastest_layout(generator: Generator, rows: int, world: World) -> str:
    """The fastest of the layouts that give the same products, for `rows` rows on this machine; the choice is logged.

    All ranks measure at the same time, as they will sample, and choose the same one.
    """
    layers = _measured_layers(generator.layout_layers())
    if not layers or is_gpu(layers[0].weight.device):
        return PLAIN
    with torch.inference_mode():
        forms = {PLAIN: [layer.forward for layer in layers]}
        forms |= {name: [laid_out(layer, name, rows) for layer in layers] for name in exact_layouts()}
        of_rank = _pass_seconds(forms, [torch.ones(rows, layer.in_features) for layer in layers])

    seconds = world.mean({name: torch.tensor(value) for name, value in of_rank.items()})
    best = min(seconds, key=seconds.__getitem__)
    read = sum(layer.weight.nbytes for layer in layers)
    rates = ", ".join(f"{name} {read / value / 1e9:.1f}" for name, value in seconds.items())
    logger.info("weight layout: %s, the fastest here for %d rows (GB/s of weights: %s)", best, rows, rates)
    return best


def _measured_layers(layers: Sequence[nn.Linear]) -> list[nn.Linear]:
    """The first of `layers`, until they hold `MEASURED_BYTES`."""
    measured, total = [], 0
    for layer in layers:
        if total >= MEASURED_BYTES:
            break
        measured.append(layer)
        total += layer.weight.nbytes
    return measured


def _pass_seconds(forms: dict[str, Sequence[Product]], inputs: Sequence[Tensor]) -> dict[str, float]:
    """The least seconds of one pass over all layers, by layout; they run in turns, and other programs only add."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(REPETITIONS):
        for name, functions in forms.items():
            start = time.perf_counter()
            for function, x in zip(functions, inputs, strict=True):
                function(x)
            seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


# ------------------------------------------------------------------------------------------------ what changes
class Probe:
    """The first draws of a few images: log-probabilities (B,V) and indices (B,) of each."""

    def __init__(self) -> None:
        self.log_p: list[Tensor] = []
        self.indices: list[Tensor] = []


class _EnoughError(Exception):
    """Ends the sampling of a probe."""


def probe(generator: Generator, follow: Probe | None = None) -> Probe:
    """Samples the first draws of a few images, or takes the indices of the probe `follow`, and notes what it saw."""
    count = min(generator.num_draws, PROBE_DRAWS)
    labels = torch.arange(PROBE_ROWS, device=generator.device) % generator.num_classes
    seeded = seeded_draw(0, torch.arange(PROBE_ROWS), count)
    seen = Probe()

    def draw(p: Tensor, position: int) -> Tensor:
        if position == count:
            raise _EnoughError
        seen.log_p.append(p.log())
        seen.indices.append(seeded(p, position) if follow is None else follow.indices[position])
        return seen.indices[-1]

    with suppress(_EnoughError):  # not raised where an image has no more draws
        generator.sample(labels, draw=draw)
    return seen


def changes(before: Probe, after: Probe) -> dict[str, float]:
    """How far two probes of the same indices are apart, to `DIGITS` digits.

    `log_p_change`: the largest difference of a log-probability, which is a logit up to a constant. `argmax_change`: the
    fraction of draws whose most probable index is another one.
    """
    pairs = list(zip(before.log_p, after.log_p, strict=True))
    is_possible = [first.isfinite() & second.isfinite() for first, second in pairs]  # padded codes are not
    log_p = max((a - b)[mask].abs().max().item() for (a, b), mask in zip(pairs, is_possible, strict=True))
    argmax = torch.stack([first.argmax(-1) != second.argmax(-1) for first, second in pairs]).double().mean().item()
    return {"log_p_change": _rounded(log_p), "argmax_change": _rounded(argmax)}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
