"""A permutation that is computed place by place, from a key, instead of being stored: O(1) memory for any size.

A Feistel network over rows x columns (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, there
the generalized Feistel cipher): a number n < rows * columns is split into (n // columns, n % columns), and the halves
are added to each other in turns, through a keyed hash and modulo their size. Each such addition can be undone, so that
the whole is a permutation whatever the hash is. rows * columns is less than one row above the number of items; a result
that is no item is permuted again until it is one (cycle walking), which is a permutation of the items.

The hash is the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014). There are only additions, products, shifts and xors of unsigned 64-bit integers, so that the result is
the same on every machine and with every version of numpy. It is a shuffle and no cipher: nothing is kept secret by it.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from engine.arithmetic import ceil_div

NUM_ROUNDS = 8  # each half is changed four times
MAX_COUNT = 2**62  # so that no product below exceeds 64 bits

HALF = np.uint64(32)
SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class KeyedPermutation:
    """A permutation of the numbers below `count` (1 to 2^62), chosen by (seed, epoch), both of 64 bits."""

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        if not 1 <= count <= MAX_COUNT:
            raise ValueError(f"count={count} must lie in 1..{MAX_COUNT}")
        self.count = count
        num_rows = math.isqrt(count - 1) + 1
        self._num_rows = np.uint64(num_rows)
        self._num_columns = np.uint64(ceil_div(count, num_rows))

        # One key of 64 bits per round.
        words = seed.to_bytes(8, "little") + epoch.to_bytes(8, "little")
        digest = hashlib.blake2b(words, digest_size=8 * NUM_ROUNDS, person=b"order of samples").digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """What stands at `places` (N,), each below `count`: int64 (N,)."""
        numbers = self._permuted(np.asarray(places, dtype=np.uint64))
        outside = np.flatnonzero(numbers >= self.count)
        while len(outside):
            numbers[outside] = self._permuted(numbers[outside])
            outside = outside[numbers[outside] >= self.count]
        return numbers.astype(np.int64)

    def _permuted(self, numbers: np.ndarray) -> np.ndarray:
        """A permutation of all numbers below rows * columns: uint64 (N,) -> uint64 (N,)."""
        rows, columns = np.divmod(numbers, self._num_columns)
        for row_key, column_key in self._round_keys.reshape(-1, 2):
            rows = _added(rows, columns ^ row_key, self._num_rows)
            columns = _added(columns, rows ^ column_key, self._num_columns)
        return rows * self._num_columns + columns


def _added(numbers: np.ndarray, inputs: np.ndarray, modulus: np.uint64) -> np.ndarray:
    """(numbers + hash of inputs) modulo `modulus`, which lies below 2^32, as the numbers do: uint64 (N,)."""
    hashed = (inputs ^ (inputs >> SHIFTS[0])) * FACTORS[0]
    hashed = (hashed ^ (hashed >> SHIFTS[1])) * FACTORS[1]
    hashed ^= hashed >> SHIFTS[2]

    # The upper half of the hash, as a fraction of 2^32, times the modulus: faster than a remainder.
    total = numbers + ((hashed >> HALF) * modulus >> HALF)
    return np.where(total >= modulus, total - modulus, total)
