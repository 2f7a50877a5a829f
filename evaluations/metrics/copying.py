"""copying_z: whether generated images lie closer to the training images than held-out ones do (arXiv:2004.05675).

The test of Meehan et al. with a single cell: Z of the Mann-Whitney U of the distances L of generated images against
those of held-out ones. Far below 0 means copies, above 0 underfitting. Its authors found that no such number separates
copying from other faults.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from engine.devices import full_precision
from evaluations.metrics.blocks import stored_order
from evaluations.metrics.frechet_jackknife import CHUNK_ELEMENTS, mean_of, moments_of
from evaluations.metrics.neighbors import clouds, nearest

MAX_DIM = 64  # features are reduced to this many principal components of the training images


def copying_z(training: Tensor, held_out: Tensor, generated: Tensor) -> float:
    """Z of generated features (m,D) against held-out ones (h,D), by their distances to training features (n,D).

    Z = (U - (h m / 2 - 1/2)) / sqrt(h m (h + m + 1) / 12), where U counts pairs with L(generated) > L(held-out), ties
    half. Raises ValueError for sets without images.
    """
    if min(len(training), len(held_out), len(generated)) < 1:
        raise ValueError("copying_z needs images in each of the three sets")
    if training.shape[1] > MAX_DIM:
        training, held_out, generated = principal_components(training, held_out, generated)

    with full_precision(training.device):
        known, held_out_cloud, generated_cloud = clouds(training, held_out, generated)
        of_held_out = nearest(held_out_cloud, known, 1)[0][:, 0].cpu().numpy()
        of_generated = nearest(generated_cloud, known, 1)[0][:, 0].cpu().numpy()

    # The number of held-out distances below each generated one, ties half.
    of_held_out.sort()
    below = np.searchsorted(of_held_out, of_generated, side="left")
    not_above = np.searchsorted(of_held_out, of_generated, side="right")
    wins = (below + not_above).sum() / 2

    pairs = len(of_held_out) * len(of_generated)
    spread = math.sqrt(pairs * (len(of_held_out) + len(of_generated) + 1) / 12)
    return float(wins - (pairs / 2 - 1 / 2)) / spread


def principal_components(training: Tensor, *others: Tensor) -> list[Tensor]:
    """The sets of features (n,D) on the first 64 principal components of the first set, each (n,64) float64."""
    center = mean_of(training)
    covariance = moments_of(training, stored_order(len(training)), center).covariance()
    _, vectors = torch.linalg.eigh(torch.from_numpy(covariance))  # by ascending variance
    leading = vectors[:, -MAX_DIM:].to(training.device)
    center = center.to(training.device)
    rows_per_chunk = max(1, CHUNK_ELEMENTS // training.shape[1])
    return [
        torch.cat([(chunk.double() - center) @ leading for chunk in rows.split(rows_per_chunk)])
        for rows in (training, *others)
    ]
