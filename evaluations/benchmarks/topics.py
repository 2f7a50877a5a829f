"""The topics of the benchmark in their order: name for `--only`, title of the page, and what yields the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from evaluations.benchmarks import (
    data,
    evaluation,
    feature_tables,
    growth,
    journey,
    memory_of_training,
    quantizers,
    sampler,
    startup,
    threads,
    training,
)
from evaluations.benchmarks.cases import Measurable

SIZES = ("quick", "default", "long")
REPETITIONS = {"quick": 3, "default": 5, "long": 5}


@dataclass(frozen=True)
class Topic:
    """Rows that belong together."""

    title: str
    cases: Callable[[str, torch.device], Iterator[Measurable]]  # (one of SIZES, device)


TOPICS: dict[str, Topic] = {
    "quantizers": Topic("Quantizers", quantizers.cases),
    "sampler": Topic("Sampler and pixels", sampler.cases),
    "data": Topic("Data", data.cases),
    "evaluation": Topic("Evaluation", evaluation.cases),
    "numbers": Topic("Numbers of stored features", feature_tables.cases),
    "startup": Topic("Start-up", startup.cases),
    "training": Topic("Training steps", training.cases),
    "memory": Topic("Memory of a training step", memory_of_training.cases),
    "growth": Topic("Growth of a training step", growth.cases),
    "threads": Topic("Threads of a CPU", threads.cases),
    "journey": Topic("The whole quick start", journey.cases),
}
