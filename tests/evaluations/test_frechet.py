"""Moments and the Frechet distance: equal to numpy and scipy, in any division of the data."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from evaluations.metrics import frechet
from evaluations.metrics.frechet import Moments, frechet_distance


def covariance(rng, dim, rank=None):
    factor = rng.standard_normal((dim, rank or dim))
    return factor @ factor.T / dim


@pytest.mark.parametrize("dim", [1, 5, 40])
def test_distance_is_that_of_scipy(dim):
    """|mu_a - mu_b|^2 + tr(A + B - 2 (AB)^1/2) with scipy's matrix square root, to 1e-6 relative."""
    rng = np.random.default_rng(dim)
    mean_a, mean_b, cov_a, cov_b = (
        rng.standard_normal(dim),
        rng.standard_normal(dim),
        covariance(rng, dim),
        covariance(rng, dim),
    )
    root = np.atleast_2d(sqrtm(cov_a @ cov_b))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * np.real(root))
    assert frechet_distance((mean_a, cov_a), (mean_b, cov_b)) == pytest.approx(expected, rel=1e-6)


def test_singular_covariances_have_a_finite_distance():
    """Fewer images than features: the closed form for commuting diagonal covariances still holds."""
    a, b = np.diag([4.0, 0.0, 0.0]), np.diag([1.0, 9.0, 0.0])
    assert frechet_distance((np.zeros(3), a), (np.zeros(3), b)) == pytest.approx((2 - 1) ** 2 + (0 - 3) ** 2)
    low_rank = covariance(np.random.default_rng(0), 30, rank=3)
    assert abs(frechet_distance((np.ones(30), low_rank), (np.ones(30), low_rank))) < 1e-6 * np.trace(low_rank)


@pytest.mark.parametrize("scales", [[1.0] * 6, [1e-9, 1e-3, 1.0, 1e3, 1.0, 1.0], [1.0, 1.0, 1.0, 1e-160, 0.0, 1.0]])
def test_a_distance_does_not_depend_on_how_the_root_is_taken(scales, monkeypatch):
    """Regular, badly scaled and singular covariances: both roots give one distance, in both directions."""
    rng = np.random.default_rng(1)
    scaling = np.diag(scales)
    a = rng.standard_normal(6), scaling @ covariance(rng, 6) @ scaling
    b = rng.standard_normal(6), scaling @ covariance(rng, 6) @ scaling
    distance = frechet_distance(a, b)
    tolerance = 1e-7 * (np.trace(a[1]) + np.trace(b[1]))
    assert frechet_distance(b, a) == pytest.approx(distance, abs=tolerance)
    monkeypatch.setattr(frechet, "_root", frechet._symmetric_root)
    assert frechet_distance(a, b) == pytest.approx(distance, abs=tolerance)


def test_a_singular_covariance_has_the_symmetric_root():
    """Of fewer images than features, also where rounding lets a Cholesky decomposition pass; else the faster one."""
    factor = np.random.default_rng(2).standard_normal((8, 5))
    singular = factor @ factor.T
    for shift, is_lower in ((0.0, False), (1e-16, False), (1e-3, True)):
        root = frechet._root(singular + shift * np.eye(8))
        np.testing.assert_allclose(root @ root.T, singular + shift * np.eye(8), atol=1e-6)
        assert np.array_equal(root, np.tril(root)) == is_lower


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match="different sizes"):
        frechet_distance((np.zeros(2), np.eye(2)), (np.zeros(3), np.eye(3)))


@pytest.mark.parametrize("sizes", [[100], [1, 99], [33, 33, 34], [7] * 14 + [2]])
def test_streamed_moments_are_those_of_numpy(sizes):
    """Mean and unbiased covariance to 1e-12, for any division into batches, also far from zero."""
    features = torch.randn(100, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1000
    moments = Moments(6)
    for chunk in features.split(sizes):
        moments.update(chunk)
    np.testing.assert_allclose(moments.mean(), features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(features.numpy().T), rtol=1e-10, atol=1e-12)


class TwoRanks:
    """A world of two whose other rank contributes the given tensors, in the order in which they are summed."""

    size, device = 2, torch.device("cpu")

    def __init__(self, others):
        self.others = iter(others)

    def sum(self, tensor):
        return tensor + next(self.others)


def test_merged_moments_are_those_of_all_images():
    """Two ranks with different numbers of images and different centers give the moments of the union."""
    features = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 5
    mine, theirs = Moments(4), Moments(4)
    mine.update(features[:20])
    theirs.update(features[20:])
    center = (mine.center + theirs.center) / 2
    total, outer = theirs.sums_around(center)
    merged = mine.merged(TwoRanks([theirs.center, torch.tensor(30), total, outer]))
    assert merged.count == 50
    np.testing.assert_allclose(merged.mean(), features.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance(), np.cov(features.numpy().T), rtol=1e-10)


def test_equal_sets_are_at_distance_zero_and_noise_is_far():
    """The distance is 0 for the same features, and grows with a shift by exactly its squared length."""
    features = torch.randn(200, 5, generator=torch.Generator().manual_seed(2))
    a, b = Moments(5), Moments(5)
    a.update(features)
    b.update(features + 2)
    assert frechet_distance(a.gaussian(), a.gaussian()) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a.gaussian(), b.gaussian()) == pytest.approx(5 * 4, rel=1e-6)


@pytest.mark.parametrize("bad", [torch.tensor([[float("nan"), 0.0]]), torch.tensor([[float("inf"), 0.0]])])
def test_features_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinity"):
        Moments(2).update(bad)


def test_shapes_and_counts_are_checked():
    moments = Moments(3)
    with pytest.raises(ValueError, match="expected features"):
        moments.update(torch.zeros(2, 4))
    moments.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="2 or more images"):
        moments.covariance()
