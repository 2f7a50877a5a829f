"""The error of a Frechet distance and its value for infinitely many images, by the jackknife over blocks of images.

A Frechet distance of m images is too large, by a term that falls with 1/m (arXiv:1911.07023). The jackknife gives the
error and removes that term at once, from the distances with one of B blocks left out. Only the measured images are
left out: the reference stays as it is, with the bias of its own number of images.

`evaluations.metrics.frechet_subsets` has the published form, a line through distances of random subsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from evaluations.metrics.blocks import NUM_BLOCKS, blocks_of
from evaluations.metrics.frechet import FrechetAnchor, FrechetTerms, Gaussian, Moments
from evaluations.metrics.intervals import Estimate, bias_corrected, jackknife

CHUNK_ELEMENTS = 2**22  # features converted to float64 at a time
VALID_RATIO = 5  # images per feature below which the extrapolation is wrong: at 2.5 the interval covers 77 %
SAFE_RATIO = 10  # below this it is roughly right


@dataclass(frozen=True)
class FrechetEstimates:
    """A Frechet distance and its two terms with their errors, and the distance for infinitely many images."""

    distance: Estimate
    means: Estimate  # |mu - mu_r|^2
    covariances: Estimate  # tr(S + S_r - 2 (S S_r)^1/2)

    @property
    def infinity(self) -> Estimate:
        """The distance for infinitely many measured images; see `infinity_problem`."""
        return bias_corrected(self.distance)


def moments_of(features: Tensor, rows: Tensor, center: Tensor) -> Moments:
    """The moments of some rows (k,) of features (m,D), around a center (D,) float64."""
    moments = Moments(features.shape[1], center=center)
    for chunk in rows.split(max(1, CHUNK_ELEMENTS // features.shape[1])):
        moments.update(features[chunk])
    return moments


def mean_of(features: Tensor) -> Tensor:
    """The mean (D,) float64 of features (m,D), without a copy of all of them in float64."""
    chunks = features.split(max(1, CHUNK_ELEMENTS // features.shape[1]))
    return torch.stack([chunk.double().sum(0) for chunk in chunks]).sum(0).cpu() / len(features)


def frechet_jackknife(
    features: Tensor, reference: Gaussian, order: Tensor, num_blocks: int = NUM_BLOCKS
) -> FrechetEstimates:
    """The distance of features (m,D) from a reference, with the jackknife's errors.

    `order` (m,): the rows, of which consecutive ones form a block (`evaluations.metrics.blocks`). Held at a time are
    the moments of all blocks, `num_blocks` matrices (D,D) in float64. Raises ValueError for fewer images than blocks,
    and where a block leaves fewer than 2 images.
    """
    count = len(features)
    if count < num_blocks or count - -(-count // num_blocks) < 2:
        raise ValueError(f"{num_blocks} blocks need more than {count} images")

    # Once over the features; the moments without a block are differences.
    center = mean_of(features)
    parts = [moments_of(features, rows, center) for rows in blocks_of(order, num_blocks)]
    total = reduce(Moments.plus, parts)
    anchor = FrechetAnchor(reference)
    whole = anchor.terms(total.gaussian())
    without = [anchor.terms(total.plus(part, sign=-1).gaussian()) for part in parts]
    return FrechetEstimates(
        distance=_estimate(whole, without, "distance"),
        means=_estimate(whole, without, "means"),
        covariances=_estimate(whole, without, "covariances"),
    )


def _estimate(whole: FrechetTerms, without: Sequence[FrechetTerms], name: str) -> Estimate:
    """One of the numbers of a distance, with its error."""
    return jackknife(getattr(whole, name), [getattr(terms, name) for terms in without])


def infinity_problem(count: int, dim: int) -> str | None:
    """Why `count` images with `dim` features say nothing about infinitely many; None where they do."""
    if count >= VALID_RATIO * dim:
        return None
    return f"{count} images are fewer than {VALID_RATIO} per feature ({VALID_RATIO} x {dim} = {VALID_RATIO * dim})"


def infinity_warning(count: int, dim: int) -> str | None:
    """What to say about a valid extrapolation from few images; None where there are enough."""
    if count >= SAFE_RATIO * dim:
        return None
    return f"{count} images are fewer than {SAFE_RATIO} per feature ({dim}): the extrapolated distance is rough"
