"""engine/philox.py: the random numbers of many counters at once are those of numpy's generator for each of them."""

import numpy as np
import pytest

from engine.philox import bounded, first_words, fractions
from engine.seeds import counter_rng

NUMBERS = np.array([0, 1, 2, 77, 2**32 - 1, 2**32, 2**63 - 1], dtype=np.uint64)


@pytest.mark.parametrize("seed", [0, 5, 2**32, 2**64 - 1])
@pytest.mark.parametrize("key", [0x5EED, 2**63])
def test_words_are_those_of_a_generator_per_counter(seed, key):
    words = first_words(seed, key, NUMBERS)
    assert words.shape == (4, len(NUMBERS))
    for column, number in zip(words.T, NUMBERS.tolist(), strict=True):
        assert column.tolist() == counter_rng(seed, key, number).bit_generator.random_raw(4).tolist()


@pytest.mark.parametrize("bound", [2, 3, 10, 1000, 2**31 + 1, 2**32 - 1])
def test_integers_and_fractions_are_those_of_the_generator(bound):
    """Drawn one after the other; where the method rejects a word, it says so."""
    numbers = np.arange(500, dtype=np.uint64)
    words = first_words(3, 1, numbers)
    integers, is_rejected = bounded(words[0], bound)
    second = fractions(words[1])
    for i in np.flatnonzero(~is_rejected):
        rng = counter_rng(3, 1, i)
        assert (rng.integers(bound), rng.random()) == (integers[i], second[i])
    assert is_rejected.any() == (bound == 2**31 + 1)
    assert fractions(words[0])[9] == counter_rng(3, 1, 9).random()
