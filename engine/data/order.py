"""The order of training samples: which sample stands at which position, a pure function of (seed, position).

Position p is the p-th sample of a run, counted over all ranks. Epoch e = p // n visits every sample once, in a
permutation that depends on (seed, e). There are two versions of that permutation. A run keeps the version that it began
with: manifests of checkpoints say which (`engine.checkpoint.manifest`).

    1   a shuffled table of all samples: 8 bytes per sample in every process, and seconds to shuffle 100 million
    2   a permutation that is computed from a key (`engine.data.permutation`): no table, for any number of samples
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from engine.data.permutation import KeyedPermutation
from engine.messages import UserError

FIRST_ORDER = 1  # of runs whose checkpoints do not say
NEWEST_ORDER = 2  # of new runs

Permutation = Callable[[np.ndarray], np.ndarray]  # places below n (N,) -> samples int64 (N,)


@lru_cache(maxsize=4)
def _shuffled_table(count: int, seed: int, epoch: int) -> Permutation:
    """Version 1; a few epochs stay cached, because every batch asks."""
    return np.random.default_rng([seed, epoch]).permutation(count).__getitem__


PERMUTATIONS: dict[int, Callable[[int, int, int], Permutation]] = {
    FIRST_ORDER: _shuffled_table,
    NEWEST_ORDER: lru_cache(maxsize=4)(KeyedPermutation),
}  # version -> (number of samples, seed, epoch) -> the permutation


@dataclass(frozen=True)
class SampleOrder:
    """The order of `count` samples in a run with `seed`. Raises UserError for a version that does not exist."""

    seed: int
    count: int
    version: int = NEWEST_ORDER

    def __post_init__(self) -> None:
        if self.version not in PERMUTATIONS:
            known = ", ".join(map(str, PERMUTATIONS))
            raise UserError(
                f"version {self.version!r} of the order of samples is not known here ({known}); "
                "continue this run with the version of the program that began it"
            )

    def indices(self, positions: range | np.ndarray) -> np.ndarray:
        """The samples at `positions` (N,), from 0 without end: int64 (N,)."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.count)
        permutation_of = PERMUTATIONS[self.version]
        indices = np.empty_like(places)
        first, last = (int(epochs.min()), int(epochs.max())) if len(epochs) else (0, -1)
        for epoch in range(first, last + 1):
            chosen = epochs == epoch if first < last else slice(None)
            indices[chosen] = permutation_of(self.count, self.seed, epoch)(places[chosen])
        return indices
