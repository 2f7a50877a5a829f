"""Precision, recall, density and coverage of a set of images, by balls up to the k-th nearest neighbor.

With D_ij the distance of reference image i and generated image j, and r_k(i) that of i to its k-th nearest other one:

    precision   mean_j any_i [D_ij < r_k(i)]           (arXiv:1904.06991)
    recall      mean_i any_j [D_ij < r_k(j)]
    density     (1 / (k m)) sum_ij [D_ij < r_k(i)]     (arXiv:2002.09797); may exceed 1
    coverage    mean_i [min_j D_ij < r_k(i)]

All four move with the number of images: only numbers over as many images may be compared. k = 5 and `<` are those of
prdc and dgm-eval. ADM's precision and recall (k = 3, `<=`) are those of `evaluations.metrics.precision_recall`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from engine.devices import full_precision
from evaluations.metrics.blocks import NUM_FOLDS, folds_of
from evaluations.metrics.intervals import Estimate, of_folds
from evaluations.metrics.neighbors import clouds, nearest_others, within

NEIGHBOR = 5  # a ball reaches to this nearest neighbor, not counting the image itself
MAX_IMAGES = 10_000  # of each set in a result


@dataclass(frozen=True)
class Manifold:
    """The four numbers of two sets."""

    precision: float
    recall: float
    density: float
    coverage: float


MANIFOLD_NAMES = tuple(field.name for field in fields(Manifold))


@dataclass(frozen=True)
class Duplicates:
    """Images whose radius is 0, because k or more others are exact copies of them: no image lies in their balls."""

    reference: int
    generated: int


def manifold(
    reference: Tensor, generated: Tensor, neighbor: int = NEIGHBOR, strict: bool = True
) -> tuple[Manifold, Duplicates]:
    """The numbers of generated features (m,D) against reference features (n,D).

    `strict`: an image on the boundary of a ball is outside (`<`), else inside (`<=`). Raises ValueError for sets of no
    more than `neighbor` images.
    """
    if min(len(reference), len(generated)) <= neighbor:
        raise ValueError(f"the manifold of {neighbor} neighbors needs more images in each set")

    with full_precision(reference.device):
        real, fake = clouds(reference, generated)
        real_radii = nearest_others(real, neighbor)[:, -1]
        fake_radii = nearest_others(fake, neighbor)[:, -1]

        # One pass over tiles of the generated images decides all four.
        num_precise = num_inside = 0
        recalled, covered = torch.zeros(2, len(real), dtype=torch.bool, device=reference.device)
        for in_real, in_fake in within(fake, real, fake_radii, real_radii, strict):
            num_precise += in_real.any(1).sum().item()
            num_inside += in_real.sum().item()
            covered |= in_real.any(0)
            recalled |= in_fake.any(0)

    numbers = Manifold(
        precision=num_precise / len(fake),
        recall=recalled.sum().item() / len(real),
        density=num_inside / (neighbor * len(fake)),
        coverage=covered.sum().item() / len(real),
    )
    duplicates = Duplicates((real_radii == 0).sum().item(), (fake_radii == 0).sum().item())
    return numbers, duplicates


def manifold_of_folds(
    reference: Tensor,
    generated: Tensor,
    reference_order: Tensor,
    generated_order: Tensor,
    neighbor: int = NEIGHBOR,
    num_folds: int = NUM_FOLDS,
    strict: bool = True,
) -> list[Manifold]:
    """The numbers of disjoint folds of both sets in the given orders.

    Raises ValueError for folds of no more than `neighbor` images.
    """
    pairs = zip(folds_of(reference_order, num_folds), folds_of(generated_order, num_folds), strict=True)
    return [manifold(reference[rows], generated[samples], neighbor, strict)[0] for rows, samples in pairs]


def manifold_folds(
    reference: Tensor, generated: Tensor, reference_order: Tensor, generated_order: Tensor
) -> tuple[dict[str, Estimate], Duplicates]:
    """The numbers by name with their errors, from disjoint folds of both sets in the given orders.

    Raises ValueError for folds of no more than `NEIGHBOR` images.
    """
    whole, duplicates = manifold(reference, generated)
    folds = manifold_of_folds(reference, generated, reference_order, generated_order)
    estimates = {
        name: of_folds(getattr(whole, name), [getattr(fold, name) for fold in folds]) for name in MANIFOLD_NAMES
    }
    return estimates, duplicates


def expected_coverage(num_reference: int, num_generated: int, neighbor: int = NEIGHBOR) -> float:
    """The coverage of two sets of the same law: 1 - prod_{i=1..k} (n-i) / (n+m-i) (arXiv:2002.09797, Lemma 2)."""
    missed = 1.0
    for i in range(1, neighbor + 1):
        missed *= (num_reference - i) / (num_reference + num_generated - i)
    return 1 - missed
