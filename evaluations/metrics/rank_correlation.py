"""Spearman's rank correlation of a few points, with the interval and the p-value that so few points deserve.

The interval inverts a test: it holds every correlation of a bivariate normal law under which neither so high nor so low
a rank correlation is rarer than 2.5 %. This is an exact construction (Clopper and Pearson, 1934), for any number of
points and also where the order agrees perfectly; the usual one (Fisher's z) then says -1 or 1 without any doubt, and
has no value for 3 points. What the law gives is computed from seeded draws. The ends are Spearman's correlations of the
law, 6/pi asin(r/2) (Pearson, 1907).

The p-value is the fraction of all orders of the points that agree or disagree as much as the observed one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from evaluations.metrics.intervals import CONFIDENCE

MIN_POINTS = 3  # two points always have one order or the other
MAX_ENUMERATED = 8  # points whose orders are all looked at (40,320); of more, `NUM_ORDERS` random ones
NUM_ORDERS = 20_000
NUM_DRAWS = 5_000  # from a normal law; the ends of an interval are known to about 0.02
SEED = 2026
BISECTIONS = 12  # of an end of the interval: to 0.0005
TIE = 1e-9  # rank correlations that differ by less are equal


@dataclass(frozen=True)
class RankCorrelation:
    """How far two orders of the same points agree: 1 for the same order, -1 for the reverse."""

    value: float
    low: float  # ends of the 95 % interval, which takes the points as independent
    high: float
    p_value: float  # two-sided
    count: int  # of points


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> RankCorrelation:
    """Spearman's correlation of two numbers of the same points; points with equal numbers share their mean rank.

    Raises ValueError for fewer than 3 points, and where all points have the same number.
    """
    if len(first) != len(second) or len(first) < MIN_POINTS:
        raise ValueError(f"a rank correlation needs {MIN_POINTS} or more points, found {len(first)}")
    ranks = mean_ranks(first), mean_ranks(second)
    if any(np.ptp(of_one) == 0 for of_one in ranks):
        raise ValueError("all points have the same number, so that they have no order")
    value = float(_correlations(ranks[0], ranks[1]))
    low, high = _interval(round(value, 9), len(first))
    return RankCorrelation(value, low, high, _p_value(value, *ranks), len(first))


def mean_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, (n,) float64; equal values share the mean of theirs."""
    _, places, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of ranks (..., n) along the last axis."""
    a = first - first.mean(-1, keepdims=True)
    b = second - second.mean(-1, keepdims=True)
    return (a * b).sum(-1) / np.sqrt(np.square(a).sum(-1) * np.square(b).sum(-1))


def _p_value(value: float, first: np.ndarray, second: np.ndarray) -> float:
    """The fraction of the orders of `second` whose correlation is as far from 0 as `value`."""
    count = len(first)
    if count <= MAX_ENUMERATED:
        orders = second[np.array(list(itertools.permutations(range(count))))]
        return float(np.mean(np.abs(_correlations(first, orders)) >= abs(value) - TIE))

    # Of random orders; the observed one is counted among them, so that no p-value is 0.
    draw = np.random.RandomState(SEED)
    orders = second[np.argsort(draw.rand(NUM_ORDERS, count), axis=1)]
    as_far = np.abs(_correlations(first, orders)) >= abs(value) - TIE
    return float((as_far.sum() + 1) / (NUM_ORDERS + 1))


@lru_cache(maxsize=256)
def _interval(value: float, count: int) -> tuple[float, float]:
    """The ends of the 95 % interval around a rank correlation of `count` points."""
    common, other = np.random.RandomState(SEED).standard_normal((2, NUM_DRAWS, count))
    ranks = common.argsort(-1).argsort(-1)
    tail = (1 - CONFIDENCE) / 2

    def drawn(correlation: float) -> np.ndarray:
        """Rank correlations of draws from the normal law with this correlation."""
        second = correlation * common + math.sqrt(1 - correlation**2) * other
        return _correlations(ranks, second.argsort(-1).argsort(-1))

    # Below the lower end, so high a correlation is too rare; above the upper end, so low a one.
    low = _border(lambda r: bool(np.mean(drawn(r) >= value - TIE) <= tail))
    high = _border(lambda r: bool(np.mean(drawn(r) <= value + TIE) > tail))
    return _spearman_of_normal(low), _spearman_of_normal(high)


def _border(is_below: Callable[[float], bool]) -> float:
    """The correlation up to which `is_below` is true; -1 where it never is, 1 where it always is."""
    if is_below(1.0):
        return 1.0
    low, high = -1.0, 1.0
    if not is_below(low):
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return (low + high) / 2


def _spearman_of_normal(correlation: float) -> float:
    """Spearman's correlation of a bivariate normal law."""
    return 6 / math.pi * math.asin(correlation / 2)
