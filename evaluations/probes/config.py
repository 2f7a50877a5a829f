"""Everything that defines a linear probe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from engine.data.config import DataConfig
from engine.data.sources import exact_pixel_problems, has_split, unused_keys
from engine.loop import LoopConfig
from engine.validation import Problem, Section, at_least, in_range, raise_problems
from evaluations.probes.features import NetworkConfig, network_problems

# Config keys that a resume may not change, beside the network.
FROZEN = ("probe", "loop.seed", "data.name", "data.global_batch_size", "data.random_crop", "data.flip_prob")
FROZEN_STAMPS = ("weights", "features")  # facts about the network that a resume may not change


@dataclass(kw_only=True, slots=True)
class ProbeConfig(Section):
    """How the head is trained."""

    features: Literal["augmented", "cached"] = "augmented"  # crops and flips of `data`, or center crops read once
    base_lrs: list[float] = field(default_factory=lambda: [0.1])  # peak learning rates at batch 256; one head each
    epochs: int = 90  # of floor(images / data.global_batch_size) steps; loop.steps follows from it
    warmup_epochs: int = 10
    read_batch_size: int = 50  # images per batch where features are read once; held-out ones always are

    def problems(self) -> Iterator[Problem]:
        all_positive = all(rate > 0 for rate in self.base_lrs)
        all_different = len(set(self.base_lrs)) == len(self.base_lrs)
        if not (self.base_lrs and all_positive and all_different):
            yield Problem("base_lrs", self.base_lrs, "different learning rates above 0, at least one")
        yield from at_least(self, "epochs", 1)
        yield from in_range(self, "warmup_epochs", 0, max(0, self.epochs - 1))
        yield from at_least(self, "read_batch_size", 1)


@dataclass(kw_only=True, slots=True)
class LinearProbeConfig(Section):
    """Everything that defines a probe."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    plugins: list[str] = field(default_factory=list)  # modules or .py files that register components


def validate(config: LinearProbeConfig) -> None:
    """Raises one ConfigError that lists everything that does not fit together."""
    problems = [problem.text("network") for problem in network_problems(config.network)]
    problems += unused_keys(config.data)
    problems += exact_pixel_problems(config.data)
    if config.network.gpt_dropout and config.probe.features == "cached":
        problems.append("network.gpt_dropout needs probe.features=augmented: cached features are read only once")
    if not has_split(config.data, "val"):
        problems.append("data.val_root is empty: the probe is measured on held-out images")
    if config.data.global_batch_size < 2:
        problems.append("data.global_batch_size must be 2 or more: batch norm needs a variance")
    raise_problems(problems)
