"""Random numbers from a seed of 64 bits: every seed is a stream of its own.

Samples, data order and augmentation draw from a counter-based generator (`counter_rng`), whose key is the seed. Torch's
CPU generator takes 32 bits of a seed and ignores the others, so that 5 and 2^32 + 5 would be the same: `torch_seed`
folds a seed to what it takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from numbers import Integral

import numpy as np

from engine.validation import Problem

NUM_SEEDS = 2**64
RANDOM_BITS = 31  # of the number that networks get with each training image, for random choices of their own
TORCH_SEEDS = 2**32  # that torch's CPU generator (mt19937) tells apart


def seed_problems(seed: int, key: str = "seed") -> Iterator[Problem]:
    """What is wrong with a seed; `key` names it."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        yield Problem(key, seed, "a whole number")
    elif not 0 <= seed < NUM_SEEDS:
        yield Problem(key, seed, f"in 0..{NUM_SEEDS - 1} (64 bits)")


def counter_rng(seed: int, key: int, number: int) -> np.random.Generator:
    """The random numbers of item `number` (from 0), independent of all other items; `key` keeps users of a seed apart.

    Philox (Salmon et al., SC 2011) with the key (seed, key), counted from (0, 0, 0, number).
    """
    # As words: a list that holds 2^63 or more would become floats, which lose the low bits of the seed.
    words = np.array([seed, key], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words, counter=[0, 0, 0, number]))


def torch_seed(seed: int) -> int:
    """The seed for torch: `seed` itself below 2^32, a hash of all its bits above."""
    if seed < TORCH_SEEDS:
        return seed
    return int.from_bytes(hashlib.blake2b(seed.to_bytes(8), digest_size=4).digest())
