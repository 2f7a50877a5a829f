"""Streamed moments and the Frechet distance between two Gaussians, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine.finite import require_finite
from engine.messages import UserError
from engine.world import World

Gaussian = tuple[np.ndarray, np.ndarray]  # mean (D,) and covariance (D,D), float64


@dataclass
class Moments:
    """Mean and covariance of feature vectors, accumulated batch by batch.

    Kept are the count, the sum and the sum of outer products. Sums are taken around `center`, the mean of the first
    batch, so that nothing cancels. With several ranks each has the center of its own first batch, and `merged` moves
    all of them to a common one.
    """

    dim: int
    count: int = 0
    center: Tensor | None = None  # (dim,) float64; None before the first batch
    total: Tensor = field(init=False)  # (dim,) sum of x - center
    outer: Tensor = field(init=False)  # (dim,dim) sum of (x - center) (x - center)^T

    def __post_init__(self) -> None:
        self.total = torch.zeros(self.dim, dtype=torch.float64)
        self.outer = torch.zeros(self.dim, self.dim, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Adds features (n, dim). Raises ValueError for another shape, NonFiniteValuesError for NaN or infinity."""
        features = features.detach().double().cpu()
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"expected features (n, {self.dim}), found {tuple(features.shape)}")
        require_finite(features, "features of the images")

        if self.center is None:
            self.center = features.mean(0)
        shifted = features - self.center
        self.count += len(features)
        self.total += shifted.sum(0)
        self.outer += shifted.T @ shifted

    def sums_around(self, center: Tensor) -> tuple[Tensor, Tensor]:
        """`total` and `outer` as they would be around another center (dim,)."""
        shift = self.center - center
        total = self.total + self.count * shift
        cross = torch.outer(self.total, shift)
        return total, self.outer + cross + cross.T + self.count * torch.outer(shift, shift)

    def merged(self, world: World) -> Moments:
        """The moments over all ranks. A collective: every rank calls it."""
        if world.size == 1:
            return self

        # The common center is the mean of the ranks' centers; a rank without images has zero as its own.
        rank_center = self.center if self.center is not None else torch.zeros(self.dim, dtype=torch.float64)
        center = world.sum(rank_center.to(world.device)).cpu() / world.size
        if self.center is None:
            self.center = center

        total, outer = self.sums_around(center)
        count = world.sum(torch.tensor(self.count, device=world.device)).item()
        merged = Moments(self.dim, int(count), center)
        merged.total = world.sum(total.to(world.device)).cpu()
        merged.outer = world.sum(outer.to(world.device)).cpu()
        return merged

    def mean(self) -> np.ndarray:
        """(dim,) float64."""
        return (self.center + self.total / self.count).numpy()

    def covariance(self) -> np.ndarray:
        """Unbiased covariance (dim,dim), float64. Raises UserError for fewer than two vectors."""
        if self.count < 2:
            raise UserError(f"statistics need 2 or more images, found {self.count}")
        mean = self.total / self.count
        return ((self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)).numpy()

    def gaussian(self) -> Gaussian:
        """(mean, covariance)."""
        return self.mean(), self.covariance()

    def plus(self, other: Moments, sign: int = 1) -> Moments:
        """The moments with the vectors of `other` added, which have the same center; with `sign=-1` without them."""
        moments = Moments(self.dim, self.count + sign * other.count, self.center)
        moments.total = self.total + sign * other.total
        moments.outer = self.outer + sign * other.outer
        return moments


@dataclass(frozen=True)
class FrechetTerms:
    """A squared Frechet distance by what it consists of."""

    means: float  # |mu_a - mu_b|^2
    trace_a: float
    trace_b: float
    cross: float  # tr (A B)^1/2

    @property
    def covariances(self) -> float:
        """tr(A + B - 2 (A B)^1/2): the part of the distance that the means leave."""
        return self.trace_a + self.trace_b - 2 * self.cross

    @property
    def distance(self) -> float:
        """The squared distance."""
        return self.means + self.trace_a + self.trace_b - 2 * self.cross


class FrechetAnchor:
    """A Gaussian from which distances to others are taken; the root of its covariance is computed once."""

    def __init__(self, gaussian: Gaussian) -> None:
        self.mean, self.covariance = (np.asarray(part, np.float64) for part in gaussian)
        self.root = _root(self.covariance)

    def terms(self, other: Gaussian) -> FrechetTerms:
        """The distance to another Gaussian by its terms, in float64 (Heusel et al., 2017, Eq. 6).

        |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2). With A = R R^T the eigenvalues of A B are those of R^T B R, which is
        symmetric: tr (A B)^1/2 is the sum of their roots, real and stable also for singular covariances.

        Raises ValueError for Gaussians of different sizes.
        """
        mean, covariance = (np.asarray(part, np.float64) for part in other)
        if self.mean.shape != mean.shape or self.covariance.shape != covariance.shape:
            raise ValueError(
                "statistics of different sizes: "
                f"{self.mean.shape} {self.covariance.shape} and {mean.shape} {covariance.shape}"
            )

        # Rounding may leave tiny negative eigenvalues.
        values = np.linalg.eigvalsh(self.root.T @ covariance @ self.root)
        cross = np.sqrt(values.clip(min=0)).sum()

        difference = self.mean - mean
        return FrechetTerms(
            means=float(difference @ difference),
            trace_a=float(np.trace(self.covariance)),
            trace_b=float(np.trace(covariance)),
            cross=float(cross),
        )


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance of two Gaussians, in float64; see `FrechetAnchor.terms`.

    Raises ValueError for Gaussians of different sizes.
    """
    return FrechetAnchor(a).terms(b).distance


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix R (D,D) with R R^T = covariance: its Cholesky factor, in an eighth of the time of the symmetric root.

    Of a matrix that is singular to rounding, as that of fewer images than features, it is the symmetric one.
    """
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return _symmetric_root(covariance)
    pivots = np.diagonal(factor) ** 2
    is_regular = pivots.min() > len(pivots) * np.finfo(np.float64).eps * pivots.max()
    return factor if is_regular else _symmetric_root(covariance)


def _symmetric_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric matrix whose square is `covariance`, without its negative eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
