"""The first random numbers of many counters at once, equal to those of numpy's generator for each counter alone.

A generator per counter (`engine.seeds.counter_rng`) costs 10 microseconds to make; a batch of counters is computed here
in one go. Philox4x64 with ten rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). What a
generator makes of its random words follows numpy: the 32-bit numbers are the lower half of a word first, an integer
below a bound comes by Lemire's method ("Fast Random Integer Generation in an Interval", 2019), a fraction has 53 bits.
"""

from __future__ import annotations

import numpy as np

NUM_ROUNDS = 10
NUM_KEYS = 2**64
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # added to the two words of the key after each round
FACTORS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], dtype=np.uint64)

HALF = np.uint64(32)
LOW = np.uint64(2**32 - 1)
FACTORS_HIGH, FACTORS_LOW = FACTORS >> HALF, FACTORS & LOW


def first_words(seed: int, key: int, numbers: np.ndarray) -> np.ndarray:
    """The first four random words of `counter_rng(seed, key, n)` for each n of `numbers` (N,): uint64 (4, N)."""
    # The counter is (0, 0, 0, n), and numpy counts one up before it draws.
    even = np.zeros((2, len(numbers)), dtype=np.uint64)  # words 0 and 2 of the counter
    odd = np.zeros((2, len(numbers)), dtype=np.uint64)  # words 1 and 3
    even[0] = 1
    odd[1] = numbers

    keys = [seed, key]
    for _ in range(NUM_ROUNDS):
        high, low = _products(even)
        even = high[::-1] ^ odd ^ np.array(keys, dtype=np.uint64)[:, None]
        odd = low[::-1]
        keys = [(word + step) % NUM_KEYS for word, step in zip(keys, KEY_STEPS, strict=True)]
    return np.stack([even[0], odd[0], even[1], odd[1]])


def _products(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and lower 64 bits of words times FACTORS: uint64 (2, N) each."""
    high, low = words >> HALF, words & LOW
    low_high, high_low = low * FACTORS_HIGH, high * FACTORS_LOW
    carried = (low * FACTORS_LOW >> HALF) + (high_low & LOW) + low_high
    return high * FACTORS_HIGH + (high_low >> HALF) + (carried >> HALF), words * FACTORS


def bounded(words: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """What `integers(bound)` makes of the lower half of each word, for a bound from 2 to 2^32.

    Returns the integers int64 (N,), and bool (N,): which of them the method rejects, so that the generator would draw
    again; that happens for less than `bound` of 2^32 words.
    """
    products = (words & LOW) * np.uint64(bound)
    return (products >> HALF).astype(np.int64), (products & LOW) < np.uint64(2**32 % bound)


def fractions(words: np.ndarray) -> np.ndarray:
    """What `random()` makes of each word: float64 (N,) in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
