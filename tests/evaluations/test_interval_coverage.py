"""How often the 95 % intervals hold what they speak of: Gaussian simulations over the seeds 0 to 199."""

import numpy as np
import pytest
import torch

from evaluations.metrics.blocks import NUM_BLOCKS, block_numbers, block_order, equal_blocks_of
from evaluations.metrics.cmmd import cmmd_jackknife
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.frechet_jackknife import frechet_jackknife
from evaluations.metrics.intervals import of_images
from evaluations.metrics.kid import kid_blocks
from evaluations.metrics.manifold import manifold_folds
from evaluations.metrics.mind import mind_jackknife

DIM, COUNT, SEEDS = 16, 400, range(200)
SCALE, SHIFT = 1.1, 0.2  # of the generated law, against a standard Gaussian
LAW = (np.full(DIM, SHIFT), SCALE**2 * np.eye(DIM))
REFERENCE_LAW = (np.zeros(DIM), np.eye(DIM))


def estimates_of(seed: int) -> dict:
    """All numbers of one draw of both sets, with their errors."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(COUNT, DIM, generator=generator)
    generated = SHIFT + SCALE * torch.randn(COUNT, DIM, generator=generator)
    order = block_order(COUNT)
    blocks = equal_blocks_of(order, NUM_BLOCKS)
    frechet = frechet_jackknife(generated, REFERENCE_LAW, order)  # the reference is fixed: its law
    per_image = of_images(generated[:, 0].double().numpy(), block_numbers(COUNT).numpy())
    return {
        "Frechet distance": frechet.distance,
        "its part of the means": frechet.means,
        "its part of the covariances": frechet.covariances,
        "for infinitely many images": frechet.infinity,
        "KID": kid_blocks(reference, generated, order, order, NUM_BLOCKS),
        "MIND": mind_jackknife(reference, generated, blocks, blocks, num_directions=50),
        "CMMD": cmmd_jackknife(FIXED, generated, order),
        **manifold_folds(reference, generated, order, order)[0],
        "mean over images": per_image,
    }


FIXED = torch.randn(COUNT, DIM, generator=torch.Generator().manual_seed(1000))


@pytest.mark.slow
def test_intervals_hold_the_truth_in_ninety_percent_of_the_draws_or_more():
    """The truth is known for infinitely many images and for the mean; else it is the mean over all draws."""
    draws = [estimates_of(seed) for seed in SEEDS]
    known = {"for infinitely many images": frechet_distance(LAW, REFERENCE_LAW), "mean over images": SHIFT}
    covered = {}
    for name in draws[0]:
        estimates = [draw[name] for draw in draws]
        truth = known.get(name, np.mean([estimate.value for estimate in estimates]))
        covered[name] = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
    print("\n".join(f"| {name} | {share:.1%} |" for name, share in covered.items()))
    assert min(covered.values()) >= 0.9, covered
