"""All numbers of stored features: seconds and memory of a whole evaluation, and of the published forms beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from evaluations.benchmarks.cases import ALLOWED, OURS, Reading, Row, Target, compared
from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.timing import added_memory
from evaluations.metrics.blocks import block_order
from evaluations.metrics.frechet_jackknife import mean_of, moments_of
from evaluations.metrics.inception import InceptionExtractor
from evaluations.metrics.manifold import manifold
from evaluations.protocols.feature_numbers import FeatureTables, feature_numbers

DIM = InceptionExtractor.dim
SETS = {"default": (2000, 12_000), "long": (10_000, 50_000)}  # reference images, samples
TOGETHER = ("frechet", "kid", "mind", "manifold")  # the groups of numbers that every result has
COMPATIBLE = {"kid_subsets": "KID over random subsets", "infinity_subsets": "FD_infinity through random subsets"}
PUBLISHED_NEIGHBOR = 3  # of ADM's precision and recall
MAX_SECONDS = 90.0  # of a whole evaluation on 2 cores
MAX_MIB = 1e9 / 2**20  # beyond the two tables
REFERENCE_SEED, SAMPLE_SEED = 0, 1


@dataclass(frozen=True)
class NumbersTogether:
    """The numbers that every result has, of features that are there: once, as it takes a minute."""

    name: str
    tables: Callable[[], FeatureTables]
    target: Target | None

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> Row:
        tables = self.tables()
        seconds = {group: seconds_of(lambda group=group: feature_numbers(tables, [group])) for group in TOGETHER}
        facts: dict[str, Any] = {f"seconds of {group}": value for group, value in seconds.items()}
        reading: Row = {"value": sum(seconds.values())}
        if self.target is not None:
            reading |= {"target": self.target.text(), "reached": self.target.reached(reading["value"])}
        row: Row = {
            "name": self.name,
            "unit": "s",
            "reading": reading,
            "spread": 0.0,
            "facts": facts,
            "where_missed": "kernels and distances of all pairs, and roots of covariances, are computed in float64",
        }
        added = added_memory(lambda: feature_numbers(tables, TOGETHER), device)
        if added is not None:
            row["mib"] = {OURS: added, ALLOWED: MAX_MIB}
            row["memory"] = compared(Target("at most", 1.0), added, MAX_MIB)
        return row


def cases(size: str, device: torch.device) -> Iterator[NumbersTogether | Reading]:
    """The numbers together, and each published form on a line of its own. None of them is quick."""
    if size not in SETS:
        return
    num_reference, num_samples = SETS[size]
    of_sets = f"{num_reference:,} x {num_samples:,} features"
    target = Target("at most", MAX_SECONDS) if size == "long" else None

    def tables() -> FeatureTables:
        return tables_of(num_reference, num_samples, device)

    yield NumbersTogether(f"all default numbers of {of_sets}", tables, target)
    for group, title in COMPATIBLE.items():
        yield Reading(
            f"{title}, {of_sets}",
            "s",
            lambda group=group: _on(tables(), lambda sets: feature_numbers(sets, [group])),
            repeats=False,
        )
    yield Reading(
        f"precision and recall of {PUBLISHED_NEIGHBOR} neighbors, decided in float64, {of_sets}",
        "s",
        lambda: _on(tables(), lambda sets: manifold(sets.reference, sets.generated, PUBLISHED_NEIGHBOR, strict=False)),
        repeats=False,
    )


def tables_of(num_reference: int, num_samples: int, device: torch.device) -> FeatureTables:
    """Seeded features like those of Inception's pool: not negative."""
    reference, generated = (
        torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)).relu_().to(device)
        for count, seed in ((num_reference, REFERENCE_SEED), (num_samples, SAMPLE_SEED))
    )
    moments = moments_of(reference, block_order(num_reference).to(device), mean_of(reference))
    return FeatureTables(
        extractor=InceptionExtractor,
        distance="fid",
        generated=generated,
        reference_moments=moments.gaussian(),
        reference=reference,
        reference_kind="train",
    )


def seconds_of(work: Callable[[], object]) -> float:
    """The time that some work takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _on(tables: FeatureTables, work: Callable[[FeatureTables], object]) -> float:
    """The time that some work on tables takes, without that of making them."""
    return seconds_of(lambda: work(tables))
