"""engine/data/order.py and permutation.py: the order of samples, in two versions; a run keeps the one it began with."""

import numpy as np
import pytest
from scipy.stats import chisquare

from engine.checkpoint.manifest import ORDER_KEY, order_version_of, order_version_of_run
from engine.data.order import FIRST_ORDER, NEWEST_ORDER, SampleOrder
from engine.data.permutation import MAX_COUNT, KeyedPermutation
from engine.messages import UserError


def whole(count: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return KeyedPermutation(count, seed, epoch)(np.arange(count))


GOLDEN = (
    [1245802, 126553, 764705, 970884, 1078133, 215329],
    [1, 4, 3, 7, 5, 0],
    [724575490016330500, 612670314038876989, 191802051404274366, 1971817906425356326, 4489448855458309134],
)


# ---------------------------------------------------------------------------------------------- the permutation
@pytest.mark.parametrize("counts", [range(1, 300), (1000, 1024, 1025, 65_535, 65_536, 65_537, 1_281_167)])
def test_every_number_comes_once(counts):
    """For every small size, for squares and their neighbors, for powers of two, and for ImageNet."""
    for count in counts:
        seen = np.bincount(whole(count, seed=count), minlength=count)
        assert len(seen) == count and (seen == 1).all(), count


def test_the_same_permutation_on_every_machine():
    """Numbers that were written down: of 64-bit seeds, of several epochs, of the largest size."""
    places = np.arange(6)
    assert KeyedPermutation(1_281_167, 0, 0)(places).tolist() == GOLDEN[0]
    assert KeyedPermutation(10, 2**64 - 1, 3)(places).tolist() == GOLDEN[1]
    assert KeyedPermutation(MAX_COUNT, 7, 2**63)(places[:5]).tolist() == GOLDEN[2]
    assert KeyedPermutation(MAX_COUNT, 7, 2**63)(places + MAX_COUNT - 6).max() < MAX_COUNT


@pytest.mark.parametrize("count", [0, -1, MAX_COUNT + 1])
def test_sizes_that_cannot_be_are_refused(count):
    with pytest.raises(ValueError, match="must lie in"):
        KeyedPermutation(count, 0, 0)


def test_any_part_of_it_is_computed_alone():
    """Place by place, in pieces, or at once: O(1) memory needs no more than the places that are asked for."""
    at_once = whole(1000, seed=3)
    permutation = KeyedPermutation(1000, 3, 0)
    assert [int(permutation(np.array([place]))[0]) for place in range(1000)] == at_once.tolist()
    backward = permutation(np.arange(1000)[::-1])
    assert np.array_equal(backward[::-1], at_once)


def test_it_looks_like_chance():
    """Neighbors, the own place, the parity and the bits of places tell nothing; at sizes of real sets."""
    count = 100_003
    shuffled = whole(count, seed=1)
    places = np.arange(count)
    for other in (places, np.roll(shuffled, 1), np.roll(shuffled, 317), whole(count, seed=2), whole(count, 1, 1)):
        assert abs(np.corrcoef(shuffled, other)[0, 1]) < 5 / np.sqrt(count)
    assert (shuffled == places).sum() < 10, "about one fixed point is expected"
    assert abs(((shuffled[1:] - shuffled[:-1]) == 1).sum() - 1) < 10

    # Any window of places draws evenly from the whole set.
    for window in shuffled[:99_968].reshape(-1, 6248):
        counts = np.bincount(window * 64 // count, minlength=64)
        assert chisquare(counts).pvalue > 1e-5


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_small_sets_reach_every_order_evenly(count):
    """The first two samples of an epoch, over 1,500 epochs: all pairs are equally likely."""
    firsts = np.array([KeyedPermutation(count, 5, epoch)(np.arange(2)) for epoch in range(1500)])
    pairs = np.bincount(firsts[:, 0] * count + firsts[:, 1], minlength=count**2).reshape(count, count)
    assert not pairs.diagonal().any()
    assert chisquare(pairs[~np.eye(count, dtype=bool)]).pvalue > 1e-4


# ---------------------------------------------------------------------------------------------- the order
@pytest.mark.parametrize("version", [FIRST_ORDER, NEWEST_ORDER])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_an_epoch_visits_every_sample_once(count, version):
    """Epoch e is a permutation; different epochs and different seeds have different ones."""
    indices = SampleOrder(3, count, version).indices(range(3 * count)).reshape(3, count)
    assert (np.sort(indices, axis=1) == np.arange(count)).all()
    if count == 100:
        other_seed = SampleOrder(4, count, version).indices(range(count))
        assert len({*map(tuple, indices.tolist()), tuple(other_seed.tolist()), tuple(range(count))}) == 5


@pytest.mark.parametrize("version", [FIRST_ORDER, NEWEST_ORDER])
def test_positions_may_cross_borders_of_epochs(version):
    """A batch over several epochs of a small set is what its positions are one by one."""
    order = SampleOrder(1, 5, version)
    assert order.indices(range(3, 17)).tolist() == [int(order.indices(range(p, p + 1))[0]) for p in range(3, 17)]


def test_the_first_version_is_the_table_that_older_programs_shuffled():
    order = SampleOrder(9, 50, FIRST_ORDER)
    tables = [np.random.default_rng([9, epoch]).permutation(50) for epoch in range(2)]
    assert np.array_equal(order.indices(range(100)), np.concatenate(tables))


def test_an_order_of_a_newer_program_is_refused():
    with pytest.raises(UserError, match=r"version 3 of the order of samples is not known here \(1, 2\)"):
        SampleOrder(0, 10, 3)


def test_a_manifest_says_the_order_and_older_ones_mean_the_first(tmp_path):
    assert order_version_of({ORDER_KEY: 2}) == 2 and order_version_of({"step": 3}) == FIRST_ORDER
    assert order_version_of_run(tmp_path, NEWEST_ORDER) == NEWEST_ORDER
