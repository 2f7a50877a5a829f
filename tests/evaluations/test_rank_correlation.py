"""Rank correlations of few points: the value, the exact p-value, and an interval that holds the truth."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from evaluations.metrics.rank_correlation import mean_ranks, rank_correlation


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]), ([3, 1, 2, 2], [0.1, 0.5, 0.2, 0.3]), ([1, 1, 2], [5, 6, 7])],
)
def test_the_value_is_spearmans_also_with_ties(first, second):
    assert rank_correlation(first, second).value == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_equal_numbers_share_their_mean_rank():
    assert mean_ranks([7, 3, 7, 9]).tolist() == [2.5, 1, 2.5, 4]


def test_the_p_value_counts_all_orders():
    """Of the 6 orders of three points, 2 agree or disagree in full; of the 24 of four, 2 do."""
    assert rank_correlation([1, 2, 3], [1, 2, 3]).p_value == pytest.approx(2 / 6)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]).p_value == pytest.approx(2 / 24)
    assert 0 < rank_correlation(range(12), range(12)).p_value < 1e-3  # of random orders; none is called impossible


def test_few_points_have_a_wide_interval_also_where_they_agree_in_full():
    """Three points in the same order rule out little; each further point rules out more."""
    lows = [rank_correlation(range(count), range(count)).low for count in (3, 4, 5, 8)]
    assert lows == sorted(lows) and lows[0] < -0.7 and lows[1] < 0 < lows[2] and lows[3] > 0.85
    same, reverse = rank_correlation([1, 2, 3], [1, 2, 3]), rank_correlation([1, 2, 3], [3, 2, 1])
    assert same.high == 1 and reverse.low == -1 and reverse.high == pytest.approx(-same.low, abs=0.04)


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_the_interval_holds_the_truth(correlation):
    """In 95 % of 2,000 draws of four points or more, whose law has a known correlation."""
    draw = np.random.RandomState(1)
    first = draw.standard_normal((2000, 4))
    second = correlation * first + (1 - correlation**2) ** 0.5 * draw.standard_normal((2000, 4))
    truth = 6 / np.pi * np.arcsin(correlation / 2)
    found = [rank_correlation(x, y) for x, y in zip(first, second, strict=True)]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.94


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [([1, 2], [1, 2], "needs 3 or more"), ([1, 2, 3], [1, 2], "needs 3"), ([1, 1, 1], [1, 2, 3], "no order")],
)
def test_what_has_no_order_has_no_correlation(first, second, message):
    with pytest.raises(ValueError, match=message):
        rank_correlation(first, second)
