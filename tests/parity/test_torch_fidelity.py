"""torch-fidelity as an oracle: from the same seeded Inception weights and the same images, its numbers are ours.

It extracts the features itself, from the file of weights and uint8 images; nothing of ours is between them.
"""

import goldens
import numpy as np
import pytest
import torch
from inception_weights import FILE_NAME, seeded_inception, write_seeded_weights
from torch.utils.data import Dataset

from engine.assets import AssetsConfig
from evaluations.metrics.blocks import blocks_of, stored_order
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.kid import kid_subsets
from evaluations.metrics.manifold import manifold
from evaluations.metrics.precision_recall import precision_recall

torch_fidelity = pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
pytestmark = pytest.mark.slow  # Inception over 192 images, and the eigenvalues of a matrix that is not symmetric

COUNT = 48  # images of each set, 96 in all
SIZE = 64  # pixels
SUBSETS, SUBSET_SIZE = 10, 20
NEIGHBOR = 3


class Pictures(Dataset):
    """uint8 images (n,3,H,W), as torch-fidelity takes them."""

    def __init__(self, pictures: torch.Tensor) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pictures[index]


@pytest.fixture(scope="module")
def pictures():
    """(generated, reference): sets that overlap in part, so that precision and recall are neither 0 nor 1."""
    sets = (seeded_inception().seeded_images(COUNT, SIZE, *rule) for rule in ((2, 0.6), (1, 0.45)))
    return [torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) for images in sets]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_seeded_weights(tmp_path_factory.mktemp("weights"), 11, goldens.OWN / "adm" / "bn_stats.npz")


@pytest.fixture(scope="module")
def oracle(pictures, weights):
    """What torch-fidelity says of them: input 1 is the generated set. One chunk, in the order of the images."""
    generated, reference = map(Pictures, pictures)
    return torch_fidelity.calculate_metrics(
        input1=generated, input2=reference, isc=True, fid=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
        isc_splits=1, samples_shuffle=False, kid_subsets=SUBSETS, kid_subset_size=SUBSET_SIZE,
        prc_neighborhood=NEIGHBOR, batch_size=24, cuda=False, verbose=False, cache=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def statistics(pictures, weights):
    """Ours: the statistics of the generated and of the reference set, with their features."""
    assert weights.name == FILE_NAME
    extractor = EXTRACTORS["inception"](AssetsConfig(pretrained_dir=str(weights.parent), allow_unknown=["inception"]))
    both = []
    for images in pictures:
        of_set = FeatureStatistics(extractor, COUNT, keep_features=True)
        for ids in blocks_of(stored_order(COUNT), 2):
            of_set.update(ids, extractor(images[ids]))
        both.append(of_set)
    return both


def test_fid_is_that_of_torch_fidelity(oracle, statistics):
    """Within 1e-4: of fewer images than features, its eigenvalues of A B are rounded far above ours."""
    generated, reference = (part.pool.gaussian() for part in statistics)
    assert frechet_distance(reference, generated) == pytest.approx(oracle["frechet_inception_distance"], rel=1e-4)


def test_kid_is_that_of_torch_fidelity(oracle, statistics):
    """Mean and spread of the same random subsets, relative to the kernel's values: it computes in float32."""
    generated, reference = (part.features for part in statistics)
    kid = kid_subsets(reference, generated, SUBSETS, SUBSET_SIZE)
    assert kid.mean == pytest.approx(oracle["kernel_inception_distance_mean"], rel=1e-4)
    assert kid.std == pytest.approx(oracle["kernel_inception_distance_std"], rel=1e-4)
    assert kid.mean > 10 * 1e-4 * kid.std  # the comparison is not one of zeros


def test_inception_score_of_one_chunk_is_that_of_torch_fidelity(oracle, statistics, world):
    score = statistics[0].score
    expected = oracle["inception_score_mean"]
    assert score.value(world) == pytest.approx(expected, rel=1e-5)
    assert score.without_blocks(world)[1].value == pytest.approx(expected, rel=1e-5)
    assert expected > 1.1  # 1 is the score of images that do not differ


def test_precision_and_recall_are_those_of_torch_fidelity(oracle, statistics):
    """The same images are inside, in both of our forms: no image of these sets lies on a boundary."""
    generated, reference = (part.features for part in statistics)
    expected = oracle["precision"], oracle["recall"]
    assert precision_recall(reference, generated.clone()) == pytest.approx(expected, abs=1e-6)
    numbers, _ = manifold(reference, generated, NEIGHBOR, strict=False)
    assert (numbers.precision, numbers.recall) == pytest.approx(expected, abs=1e-6)
    assert all(0 < np.float64(value) < 1 for value in expected)
