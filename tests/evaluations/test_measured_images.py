"""What a protocol says about the measured images, and what is shown beside the numbers without blocking a ranking."""

import hashlib
import json
import re

import mini
import numpy as np
import pytest

from engine.data.folders import LooseSource
from engine.data.images import to_pil
from evaluations import image_sets, measure
from evaluations.comparison import compare
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.lite0 import Lite0Extractor
from evaluations.metrics.registry import METRICS, Metric
from evaluations.results import read_result, write_result
from evaluations.sample_stream import labels_of, labels_text


def write(folder, name, metrics, **protocol):
    path = folder / f"{name}.json"
    write_result(path, metrics, {"kind": "generation", **protocol}, errors=mini.tiny_errors(metrics))
    return path


def measured(tmp_path, entry, name, size=16, suffix="png", count=8):
    """A result of `evaluations.measure` over a folder of pictures, with a reference that fits them all."""
    folder = tmp_path / name
    folder.mkdir()
    for number, image in enumerate(mini.random_images(count, size)):
        to_pil(image).save(folder / f"{number}.{suffix}")
    np.savez(tmp_path / "reference.npz", mu=np.zeros(112), sigma=np.eye(112), kind="train", num_images=200)
    output = tmp_path / f"{name}.json"
    flags = ["--samples", folder, "--gt-npz-path", tmp_path / "reference.npz", "--force", "--device", "cpu"]
    code, _, err = entry(measure.main, *flags, "--output", output)
    assert code == 0, err
    return output


def test_a_check_reads_neither_pixels_nor_whole_files(tmp_path, entry, monkeypatch):
    """Before the start, a set is its listing or its header, and of a folder the first image: no other one is decoded,
    and 10 GB are not hashed twice.
    """
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        (pictures / f"{number}.png").write_bytes(b"no image")
    to_pil(mini.random_images(1, 16)[0]).save(pictures / "0.png")
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((5, 16, 16, 3), np.uint8))
    np.savez(tmp_path / "short.npz", arr_0=np.zeros((5, 16, 16), np.uint8))

    def refuse(*arguments):
        raise AssertionError("the check read a whole file")

    monkeypatch.setattr(image_sets, "file_sha256", refuse)
    monkeypatch.setattr(LooseSource, "identity", refuse)
    monkeypatch.setattr(LooseSource, "version", refuse)
    flags = ["--reference", pictures, "--reference-kind", "val", "--extractor", "efficientnet_lite0", "--check"]
    flags += ["--output", tmp_path / "result.json", "--force"]
    for name, line in (("pictures", "3 images"), ("samples.npz", "5 images")):
        code, out, err = entry(measure.main, "--samples", tmp_path / name, *flags, "--device", "cpu")
        assert code == 0 and f"--samples: {line} in {tmp_path / name}" in out, err
        assert f"--reference: 3 images in {pictures}" in out
    for name, reason in (
        ("absent.npz", "--samples: .*absent.npz does not exist"),
        ("absent", "is not a folder of images"),
        ("short.npz", r"arr_0 must be uint8 \(images, size, size, 3\), found uint8 \(5, 16, 16\)"),
    ):
        code, _, err = entry(measure.main, "--samples", tmp_path / name, *flags, "--device", "cpu")
        assert code == 2 and re.search(reason, err), err


def test_the_facts_of_a_set_are_read_when_they_are_asked_for(tmp_path):
    """The hash of a file, and the content of a folder, stand in protocols as before."""
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((5, 16, 16, 3), np.uint8))
    sha256 = hashlib.sha256((tmp_path / "samples.npz").read_bytes()).hexdigest()
    images = image_sets.open_images(tmp_path / "samples.npz")
    assert images.version == images.facts["content"] == sha256
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    to_pil(mini.random_images(1)[0]).save(pictures / "a.png")
    images = image_sets.open_images(pictures)
    source = LooseSource(pictures, "--samples")
    assert (images.version, images.facts["content"]) == (source.version(), source.identity())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": 32}, "image_size_eval: 16, then 32"),
        ({"suffix": "jpg"}, "file_format: 'PNG', then 'JPEG'"),
        ({"count": 6}, "num_images: 8, then 6"),
        ({}, None),
    ],
)
def test_other_measured_images_are_not_ranked(tmp_path, monkeypatch, entry, changes, named):
    """Size, format and number of the images belong to the protocol, also where a reference tells nothing of its own."""

    class Published(Lite0Extractor):
        capabilities = frozenset({"published"})

    monkeypatch.setitem(EXTRACTORS, "inception", Published)
    paths = [measured(tmp_path, entry, "a"), measured(tmp_path, entry, "b", **changes)]
    differences = compare([(path.stem, read_result(path)) for path in paths]).differences
    assert differences[:1] == ([f"b: {named}"] if named else [])


def test_balanced_means_that_every_class_has_as_many():
    """5 samples of 2 classes are not; random ones are never said to be."""
    for count, text in {4: "balanced", 5: "in turn, 2 to 3 per class", 1: "in turn, 0 to 1 per class"}.items():
        assert labels_text("balanced", labels_of("balanced", count, 2, seed=0), 2) == text
    assert labels_text("random", labels_of("random", 4, 2, seed=0), 2) == "random"


def test_training_steps_are_shown_and_block_no_ranking(tmp_path):
    """60 steps against 120: which is the better network is for the reader to judge, who sees both."""
    paths = [
        write(tmp_path, name, {"gfid": value}, tokenizer={"path": f"runs/t/phase_2/checkpoints/step_{step:08d}"})
        for name, value, step in (("a", 3.0, 60), ("b", 2.0, 120))
    ]
    compared = compare([(path.stem, read_result(path)) for path in paths])
    assert not compared.differences and compared.rows[0].cells() == ["3 ± 2.3e-09", "2 ± 2.3e-09*"]
    assert compared.table()[-1] == ("training steps of the tokenizer", ["phase_2, 60", "phase_2, 120"])
    assert "training steps of the tokenizer" in compared.text(["a", "b"])


def test_an_old_result_of_files_says_its_size_under_the_present_name(tmp_path):
    """So that it is compared by it."""
    old = {"kind": "generation", "num_images": 4, "image_size": 32, "samples": {"data": "x"}}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"metrics": {"gfid": 1.0}, "protocol": old}))
    assert read_result(path)["protocol"] == {
        "kind": "generation", "num_images": 4, "image_size_eval": 32, "samples": {"data": "x"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mae", "dists", "fd_other"])
def test_an_unknown_metric_has_no_star_until_a_plugin_says_its_direction(tmp_path, monkeypatch, name):
    """Nothing is guessed from a name; once the direction is registered, the smaller value is the best."""
    paths = [write(tmp_path, "a", {name: 3.0}), write(tmp_path, "b", {name: 2.0})]
    results = [(path.stem, read_result(path)) for path in paths]
    assert [row.cells() for row in compare(results).rows] == [["3 ± 2.3e-09", "2 ± 2.3e-09"]]
    monkeypatch.setitem(METRICS, name, Metric(name, name, better="lower"))
    assert [row.cells() for row in compare(results).rows] == [["3 ± 2.3e-09", "2 ± 2.3e-09*"]]
