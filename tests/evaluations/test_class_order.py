"""Samples that are sorted by class: noticed, warned of, stamped, and their Inception Score is not ranked."""

import mini
import numpy as np
import pytest
import torch
from test_trust import Pixels, images

from engine.data.images import to_pil
from evaluations import compare, measure
from evaluations.image_sets import open_images
from evaluations.metrics.class_order import ClassOrder, order_problem
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.inception_score import InceptionScore
from evaluations.results import read_result

SORTED = np.arange(40) // 10  # 4 classes, one after the other
SHUFFLED = np.arange(40) % 4


class Classifier(Pixels):
    """The first numbers of an image as features, and as logits of 5 classes."""

    num_classes = 5

    def forward(self, images_u8):
        pool = super().forward(images_u8)["pool"]
        return {"pool": pool, "logits": 9 * pool[:, :5]}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Of 10 images, and an extractor that has classes."""
    monkeypatch.setattr(measure, "SCORE_CHUNK", 10)
    monkeypatch.setattr("evaluations.metrics.inception_score.SCORE_CHUNK", 10)
    monkeypatch.setitem(EXTRACTORS, "inception", Classifier)


def test_sorted_images_have_equal_neighbors():
    """All but those at the borders of classes; in random order as many as chance gives; one class has no order."""
    order = ClassOrder.of(torch.from_numpy(SORTED))
    assert (order.share, order.expected) == (pytest.approx(36 / 39), pytest.approx(9 / 39)) and order.is_sorted
    shuffled = torch.arange(2000)[torch.randperm(2000, generator=torch.Generator().manual_seed(0))] % 10
    order = ClassOrder.of(shuffled)
    assert order.share == pytest.approx(order.expected, abs=0.02) and not order.is_sorted
    assert not ClassOrder.of(torch.zeros(9)).is_sorted and not ClassOrder.of(torch.arange(9)).is_sorted
    assert ClassOrder.of(torch.arange(1000) // 2).is_sorted  # pairs
    assert order_problem(torch.from_numpy(SORTED), 40, "label") is None  # one chunk
    assert "92.3% of consecutive images have the same label" in order_problem(torch.from_numpy(SORTED), 10, "label")


def test_the_order_changes_the_score_over_chunks(world):
    """Four certain classes: 4 in random order, 1 where each chunk holds one class."""
    values = []
    for classes in (SHUFFLED, SORTED):
        score = InceptionScore(40, 5)
        score.update(torch.arange(40), 40 * torch.eye(5)[torch.from_numpy(classes)])
        values.append(score.value(world))
    assert values == pytest.approx([4, 1], rel=0.02)


def measured(tmp_path, entry, name, **arrays):
    """(log, result) of samples with these arrays beside the images."""
    samples = tmp_path / f"{name}_samples.npz"
    np.savez(samples, **{"arr_0": images(40), **arrays})
    np.savez(tmp_path / "reference.npz", arr_0=images(20, seed=1), kind=np.array("train"))
    flags = ["--samples", samples, "--gt-npz-path", tmp_path / "reference.npz", "--device", "cpu"]
    code, _, err = entry(measure.main, *flags, "--output", tmp_path / f"{name}.json")
    assert code == 0, err
    return err, read_result(tmp_path / f"{name}.json")


@pytest.mark.parametrize("key", ["labels", "arr_1"])
def test_sorted_samples_are_warned_of_and_stamped(tmp_path, entry, key):
    """By the labels of the file; the score is not ranked against one of shuffled samples, the distance is."""
    log, result = measured(tmp_path, entry, "sorted", **{key: SORTED})
    assert "--samples: the images are sorted by class" in log
    assert "92.3% of consecutive images" in result["protocol"]["sample_order"]
    for name, arrays in {"shuffled": {key: SHUFFLED}, "unlabeled": {}, "odd": {key: SORTED[:-1]}}.items():
        log, result = measured(tmp_path, entry, name, **arrays)
        assert "sorted by class" not in log and "sample_order" not in result["protocol"], name

    code, out, _ = entry(compare.main, tmp_path / "sorted.json", tmp_path / "shuffled.json")
    assert code == 3 and "only for some metrics: sample_order: 'sorted by class" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert "*" not in rows["inception_score"]


def test_samples_without_labels_are_known_by_their_most_likely_class(tmp_path, entry):
    """Inception sees the order as well. Both scores are told; the one over chunks says that it is wrong."""

    def pictures(classes: np.ndarray) -> np.ndarray:
        made = images(40) // 8
        made[np.arange(40), 0, classes, 0] = 255  # the number that is the logit of the class
        return made

    results = {}
    for name, classes in {"sorted": SORTED, "shuffled": SHUFFLED}.items():
        log, results[name] = measured(tmp_path, entry, name, arr_0=pictures(classes))
        assert ("the images are sorted by class: 92.3% of consecutive" in log) == (name == "sorted")
    scores = {name: result["metrics"] for name, result in results.items()}
    assert scores["sorted"]["inception_score"] < 1.1 < 3 < scores["shuffled"]["inception_score"]
    for name in scores:
        assert scores[name]["inception_score_all"] == pytest.approx(scores["shuffled"]["inception_score_all"], rel=0.1)
    assert "inception_score" in results["sorted"]["definitions"]
    assert "inception_score" not in results["shuffled"].get("definitions", {})


def test_folders_of_classes_are_sorted(tmp_path):
    """The classes of a folder are its folders; of a flat one nothing is known."""
    for number, image in enumerate(mini.random_images(6, 8)):
        for folder in (tmp_path / "by_class" / str(number // 3), tmp_path / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            to_pil(image).save(folder / f"{number}.png")
    assert open_images(tmp_path / "by_class").labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert open_images(tmp_path / "flat").labels() is None
