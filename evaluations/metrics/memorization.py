"""Whether generated images copy training images: AuthPct, and the share closer than held-out images ever are.

    authpct             100 mean_j [d(t, nearest other training image of t) < d(t, j)], t = nearest training image of j
                        (arXiv:2102.08921); about 60 for generated images of the training law, lower with copies
    share_below         share of generated images closer to a training image than the 0.1 % quantile of held-out ones

AuthPct is no test: it also falls with quality. Its scale is its value for held-out images, without which it is not
shown. All distances are to *training* images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from engine.devices import full_precision
from evaluations.metrics.neighbors import Cloud, clouds, nearest

QUANTILE = 0.001  # of the distances of held-out images


@dataclass(frozen=True)
class Memorization:
    """What the distances to training images say."""

    is_authentic: Tensor  # (m,) float64: 1 where a generated image is farther from its neighbor than that from others
    authpct_held_out: float  # of held-out images, 0..100
    is_close: Tensor  # (m,) float64: 1 where a generated image is below the quantile of held-out ones

    @property
    def authpct(self) -> float:
        """0..100."""
        return 100 * self.is_authentic.mean().item()

    @property
    def share_below(self) -> float:
        """0..1; about `QUANTILE` where nothing is copied."""
        return self.is_close.mean().item()


def memorization(training: Tensor, held_out: Tensor, generated: Tensor) -> Memorization:
    """The distances of generated features (m,D) to training features (n,D), beside those of held-out ones (h,D).

    Raises ValueError for fewer than 2 training images.
    """
    with full_precision(training.device):
        known, held_out_cloud, generated_cloud = clouds(training, held_out, generated)
        held_out_nearest, held_out_authentic = _authentic(known, held_out_cloud)
        generated_nearest, generated_authentic = _authentic(known, generated_cloud)

    threshold = np.quantile(held_out_nearest.cpu().numpy(), QUANTILE)
    return Memorization(
        is_authentic=generated_authentic.double().cpu(),
        authpct_held_out=100 * held_out_authentic.double().mean().item(),
        is_close=(generated_nearest < threshold).double().cpu(),
    )


def authentic(training: Tensor, images: Tensor) -> Tensor:
    """Whether each row (m,D) is farther from its nearest training row (n,D) than that is from its nearest other one.

    (m,) bool; AuthPct is 100 times its mean. Raises ValueError for fewer than 2 training images.
    """
    with full_precision(training.device):
        return _authentic(*clouds(training, images))[1]


def _authentic(training: Cloud, images: Cloud) -> tuple[Tensor, Tensor]:
    """(squared distance of each image to its nearest training image, whether it is authentic), both (m,)."""
    distances, indices = (part[:, 0] for part in nearest(images, training, 1))

    # Of each training image that is a nearest one, its distance to its nearest other.
    distinct, places = indices.unique(return_inverse=True)
    neighbors = Cloud(training.rows[distinct], training.moved.of_rows(distinct))
    isolation = nearest(neighbors, training, 1, excluded=distinct)[0][:, 0]
    return distances, isolation[places] < distances
