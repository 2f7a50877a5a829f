"""A number with its standard error and 95 % interval, and the difference of two such numbers.

The errors speak of the sampling of images: how far the number would move with other images of the same law. They say
nothing about other seeds of training. There are four forms, of which each metric has the one that is right for it:

    jackknife   values with one block of images left out (Quenouille, 1949; Tukey, 1958)
    blocks      values of disjoint blocks, whose mean is the number
    folds       values of disjoint folds; the number is that of all images
    images      values of single images, whose mean is the number

The bootstrap is not among them: images that are drawn twice add the bias of a Frechet distance a second time, and have
a nearest neighbor at distance 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

CONFIDENCE = 0.95

Form = Literal["jackknife", "blocks", "folds", "images"]


@dataclass(frozen=True)
class Estimate:
    """A number with what its error follows from."""

    value: float
    se: float  # standard error, not negative
    freedom: int  # degrees of freedom of Student's t, 1 or more
    form: Form
    parts: tuple[float, ...]  # the value without each block, or of each block or fold; of `images` without each block

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval."""
        return student_quantile(self.freedom) * self.se

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        return self.value - self.half_width

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval."""
        return self.value + self.half_width

    def around(self, value: float) -> Estimate:
        """The same error around another value, such as the same one computed in another order."""
        return replace(self, value=value)


@dataclass(frozen=True)
class Difference:
    """How much larger a second number is than a first."""

    value: float
    half_width: float  # of the 95 % interval
    is_paired: bool  # from common blocks; else from both errors, as if the images had nothing in common

    @property
    def excludes_zero(self) -> bool:
        """Whether the 95 % interval lies on one side of 0."""
        return abs(self.value) > self.half_width


def student_quantile(freedom: int) -> float:
    """The factor of the 95 % interval: 2.262 for 9 degrees of freedom, 1.960 for infinitely many."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


# ------------------------------------------------------------------------------------------------ one number
def jackknife(value: float, leave_one_out: Sequence[float]) -> Estimate:
    """The number with the jackknife's error, from its values with one of B blocks left out each.

    se^2 = (B-1)/B sum_b (theta_-b - mean)^2. Raises ValueError for fewer than 2 blocks.
    """
    return Estimate(value, _jackknife_se(leave_one_out), len(leave_one_out) - 1, "jackknife", tuple(leave_one_out))


def bias_corrected(estimate: Estimate) -> Estimate:
    """The jackknife's estimate of the number for infinitely many images: B theta - (B-1) mean_b theta_-b.

    It removes the part of the bias that falls with 1/m. The error is the same one, around the corrected value.
    """
    num_blocks = len(estimate.parts)
    return estimate.around(num_blocks * estimate.value - (num_blocks - 1) * float(np.mean(estimate.parts)))


def of_blocks(values: Sequence[float]) -> Estimate:
    """The mean of a number over disjoint blocks, with sd/sqrt(B). Raises ValueError for fewer than 2 blocks."""
    return Estimate(float(np.mean(values)), _mean_se(values), len(values) - 1, "blocks", tuple(values))


def of_folds(value: float, values: Sequence[float]) -> Estimate:
    """The number of all images, with sd/sqrt(F) of its values in disjoint folds.

    Raises ValueError for fewer than 2 folds.
    """
    return Estimate(value, _mean_se(values), len(values) - 1, "folds", tuple(values))


def of_images(values: np.ndarray, block_numbers: np.ndarray) -> Estimate:
    """The mean of per-image values (m,), with sd/sqrt(m), and the means without each block for differences.

    `block_numbers` (m,): the block of each image. Raises ValueError for fewer than 2 images.
    """
    values = np.asarray(values, np.float64)
    num_blocks = int(block_numbers.max()) + 1
    sums = np.bincount(block_numbers, values, num_blocks)
    counts = np.bincount(block_numbers, minlength=num_blocks)
    rest = len(values) - counts
    parts = (values.sum() - sums) / np.maximum(rest, 1)
    return Estimate(float(values.mean()), _mean_se(values), len(values) - 1, "images", tuple(parts.tolist()))


def of_fraction(hits: Sequence[float], counts: Sequence[int]) -> Estimate:
    """The fraction of images that were hit, with the error of its values of 0 and 1.

    `hits` and `counts` are those of each block: how many images were hit, of how many. As `of_images` gives it from the
    values of all images. Raises ValueError for fewer than 2 images.
    """
    hit, count = np.asarray(hits, np.float64), np.asarray(counts, np.float64)
    total = int(count.sum())
    if total < 2:
        raise ValueError(f"a standard error needs 2 or more values, found {total}")
    fraction = float(hit.sum() / total)
    rest = (hit.sum() - hit) / np.maximum(total - count, 1)
    se = math.sqrt(fraction * (1 - fraction) / (total - 1))
    return Estimate(fraction, se, total - 1, "images", tuple(rest.tolist()))


def _jackknife_se(leave_one_out: Sequence[float]) -> float:
    """The jackknife's standard error."""
    values = np.asarray(leave_one_out, np.float64)
    if len(values) < 2:
        raise ValueError(f"a jackknife needs 2 or more blocks, found {len(values)}")
    return math.sqrt((len(values) - 1) / len(values) * float(np.square(values - values.mean()).sum()))


def _mean_se(values: Sequence[float] | np.ndarray) -> float:
    """The standard error of a mean: sd (ddof 1) over the root of the number of values."""
    if len(values) < 2:
        raise ValueError(f"a standard error needs 2 or more values, found {len(values)}")
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


# ------------------------------------------------------------------------------------------------ two numbers
def paired_difference(first: Estimate, second: Estimate) -> Difference:
    """The difference of two numbers over the same images, from the differences of their parts.

    What both have in common (easy images, frequent classes) cancels. Raises ValueError for other forms or other
    numbers of parts.
    """
    if first.form != second.form or len(first.parts) != len(second.parts):
        raise ValueError(
            f"no common parts: {first.form} of {len(first.parts)}, and {second.form} of {len(second.parts)}"
        )
    differences = np.subtract(second.parts, first.parts)
    leaves_out = first.form in ("jackknife", "images")
    se = _jackknife_se(differences) if leaves_out else _mean_se(differences)
    half_width = student_quantile(len(differences) - 1) * se
    return Difference(second.value - first.value, half_width, is_paired=True)


def independent_difference(first: Estimate, second: Estimate) -> Difference:
    """The difference of two numbers over different images: sqrt(se1^2 + se2^2), with the fewer degrees of freedom."""
    half_width = student_quantile(min(first.freedom, second.freedom)) * math.hypot(first.se, second.se)
    return Difference(second.value - first.value, half_width, is_paired=False)
