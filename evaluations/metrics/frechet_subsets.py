"""FD_infinity in its published form (arXiv:1911.07023): a line through the distances of random subsets.

The form of dgm-eval, with a seed. It exists for comparisons with numbers of other programs; the default is
`evaluations.metrics.frechet_jackknife`, whose error is known. The subsets share images, so the error of the line is
none of the number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evaluations.metrics.frechet import FrechetAnchor, Gaussian
from evaluations.metrics.frechet_jackknife import mean_of, moments_of

NUM_SIZES = 15
MAX_SMALLEST = 5000  # images of the smallest subset, or a tenth of all


@dataclass(frozen=True)
class SubsetLine:
    """Distances of random subsets, and the line through them as a function of 1/N."""

    sizes: tuple[int, ...]
    values: tuple[float, ...]
    intercept: float  # the distance for infinitely many images
    slope: float  # how it falls with 1/N


def fd_infinity_subsets(features: Tensor, reference: Gaussian, seed: int = 0) -> SubsetLine:
    """The line through the distances of 15 subsets of features (m,D) from a reference.

    The sizes are evenly spaced from a tenth of all (5,000 at most) to all; `numpy.random.default_rng(seed)` draws the
    subsets one after the other. Raises ValueError for fewer than 4 images.
    """
    count = len(features)
    if count < 4:
        raise ValueError(f"subsets need 4 or more images, found {count}")

    rng = np.random.default_rng(seed)
    anchor = FrechetAnchor(reference)
    center = mean_of(features)
    sizes = np.linspace(min(MAX_SMALLEST, max(count // 10, 2)), count, NUM_SIZES).astype(int).tolist()
    values = []
    for size in sizes:
        rows = torch.from_numpy(rng.choice(count, size, replace=False))
        values.append(anchor.terms(moments_of(features, rows, center).gaussian()).distance)

    slope, intercept = np.polyfit(1 / np.asarray(sizes), values, 1)
    return SubsetLine(tuple(sizes), tuple(values), float(intercept), float(slope))
