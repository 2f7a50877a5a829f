"""All numbers of stored features: seconds and memory of a whole evaluation, and of the published forms beside them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from evaluations.benchmarks.cases import ALLOWED, OURS, Reading, Row, Target, compared, judged
from evaluations.benchmarks.evaluation import MAX_MIB, features_of
from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.timing import added_memory
from evaluations.metrics.blocks import block_order
from evaluations.metrics.frechet_jackknife import mean_of, moments_of
from evaluations.metrics.inception import InceptionExtractor
from evaluations.metrics.manifold import manifold
from evaluations.protocols.feature_numbers import FeatureTables, feature_numbers

SETS = {"default": (2000, 12_000), "long": (10_000, 50_000)}  # reference images, samples
TOGETHER = ("frechet", "kid", "mind", "manifold")  # the groups of numbers that every result has
COMPATIBLE = {"kid_subsets": "KID over random subsets", "infinity_subsets": "FD_infinity through random subsets"}
PUBLISHED_NEIGHBOR = 3  # of ADM's precision and recall
MAX_SECONDS = 90.0  # of a whole evaluation on 2 cores


@dataclass(frozen=True)
class NumbersTogether:
    """The numbers that every result has, of features that are there: once, as it takes a minute."""

    name: str
    tables: Callable[[], FeatureTables]
    target: Target | None

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> Row:
        # Each group by itself; the sum is what a result takes.
        tables = self.tables()
        seconds = {group: seconds_of(lambda group=group: feature_numbers(tables, [group])) for group in TOGETHER}
        row: Row = {
            "name": self.name,
            "unit": "s",
            "reading": judged(self.target, sum(seconds.values())),
            "spread": 0.0,
            "facts": {f"seconds of {group}": value for group, value in seconds.items()},
            "where_missed": "kernels and distances of all pairs, and roots of covariances, are computed in float64",
        }

        # What they add to the tables together, where the system says it.
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
    tables = functools.cache(lambda: tables_of(num_reference, num_samples, device))  # once for all rows
    target = Target("at most", MAX_SECONDS) if size == "long" else None
    yield NumbersTogether(f"all default numbers of {of_sets}", tables, target)

    # The published forms.
    def by_neighbors() -> object:
        return manifold(tables().reference, tables().generated, PUBLISHED_NEIGHBOR, strict=False)

    forms = {title: lambda group=group: feature_numbers(tables(), [group]) for group, title in COMPATIBLE.items()} | {
        f"precision and recall of {PUBLISHED_NEIGHBOR} neighbors, decided in float64": by_neighbors
    }
    tables()  # no form is to be timed with what makes them
    for title, form in forms.items():
        yield Reading(f"{title}, {of_sets}", "s", functools.partial(seconds_of, form), repeats=False)


def tables_of(num_reference: int, num_samples: int, device: torch.device) -> FeatureTables:
    """Seeded features like those of Inception's pool."""
    reference, generated = features_of(num_reference, 0, device), features_of(num_samples, 1, device)
    moments = moments_of(reference, block_order(num_reference).to(device), mean_of(reference))
    return FeatureTables(
        extractor=InceptionExtractor.without_network(),
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
