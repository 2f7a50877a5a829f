"""The ADM suite against TensorFlow's own results on seeded weights and images, through the entry that a user runs.

`inception_weights` makes the weights and the images; ours, whatever folder PARITY_GOLDENS names.
"""

import json
import sys

import goldens
import numpy as np
import pytest
import torch
from inception_weights import seeded_inception, write_seeded_weights
from PIL import Image

from engine.assets import AssetsConfig
from evaluations import make_reference, measure
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.results import read_result

FOLDER = goldens.ROOT / "adm"
SETS = ["adm"] if FOLDER.is_dir() else []
DISTANCE, SCORE, FEATURES = 2e-5, 1e-5, 1e-4  # tolerances stated with the goldens: relative, relative, absolute
pytestmark = pytest.mark.parametrize("name", SETS)


def stored(file: str) -> dict:
    return json.loads((FOLDER / file).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """PRETRAINED_DIR with the seeded weights as the published file, and both image sets as npz files."""
    root, config = tmp_path_factory.mktemp("adm"), stored("config.json")
    write_seeded_weights(root, config["weights_seed"], FOLDER / "bn_stats.npz")
    for part in ("reference", "samples"):
        of = config[part]
        images = seeded_inception().seeded_images(of["num"], config["size"], of["seed"], of["spread"])
        np.savez(root / f"{part}.npz", arr_0=images)
    return root


def run(given, module, *flags):
    """An entry as a user runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRETRAINED_DIR", str(given))
        patch.setattr(
            sys, "argv", ["entry", *map(str, flags), "--allow-unknown-weights", "inception", "--device", "cpu"]
        )
        module.main()


@pytest.fixture(scope="module")
def result(given):
    """What `python -m evaluations.measure` writes."""
    flags = ["--samples", given / "samples.npz", "--gt-npz-path", given / "reference.npz", "--reference-kind", "train"]
    # The goldens are numbers of fewer images than entries trust. Errors and other numbers are not among them.
    flags += ["--numbers", "none", "--force"]
    run(given, measure, *flags, "--fp16-emulation", "--output", given / "result.json")
    return read_result(given / "result.json")


def compare(name: str, value: float, expected: float, limit: float) -> None:
    goldens.COMPARISONS.append((abs(value / expected - 1), limit, f"adm {name} (relative)"))
    assert value == pytest.approx(expected, rel=limit)


def test_distances_and_score_are_those_of_tensorflow(result, name):
    """FID and sFID to 2e-5, Inception Score to 1e-5."""
    expected, metrics = stored("expected.json"), result["metrics"]
    compare("fid", metrics["gfid"], expected["fid"], DISTANCE)
    compare("sfid", metrics["sfid"], expected["sfid"], DISTANCE)
    compare("inception score", metrics["inception_score"], expected["inception_score"], SCORE)


def test_precision_and_recall_are_exact_within_one_image(result, name):
    """In fp32, against float64 on the same features. Emulated fp16 is more inclusive, as TensorFlow's is."""
    expected, metrics, config = stored("expected.json"), result["metrics"], stored("config.json")
    for metric, part in (("precision", "samples"), ("recall", "reference")):
        limit = 1 / config[part]["num"] + 1e-9
        difference = abs(metrics[metric] - expected[f"{metric}_exact"])
        goldens.COMPARISONS.append((difference, limit, f"adm {metric}"))
        assert difference <= limit
        assert metrics[f"{metric}_fp16"] >= metrics[metric]


def test_features_are_those_of_tensorflow(given, name):
    """Pool features, and spatial features in NHWC order with 7 channels, to 1e-4."""
    assets = AssetsConfig(pretrained_dir=str(given), allow_unknown=["inception"])
    extractor = EXTRACTORS["inception"](assets)
    with np.load(FOLDER / "features.npz", allow_pickle=False) as expected:
        for key in expected.files:
            kind, part = key.split("_", 1)
            rows = expected[key]
            with np.load(given / f"{part}.npz") as images:
                pixels = torch.from_numpy(images["arr_0"][: len(rows)].transpose(0, 3, 1, 2).copy())
            difference = np.abs(extractor(pixels)[kind].numpy() - rows).max()
            goldens.COMPARISONS.append((float(difference), FEATURES, f"adm {key}"))
            assert difference <= FEATURES


@pytest.mark.slow
def test_folders_and_stored_statistics_give_the_same_numbers(given, result, name):
    """The reference file that `evaluations.make_reference` writes of a folder, samples from PNG files."""
    for part in ("reference", "samples"):
        (given / part).mkdir()
        with np.load(given / f"{part}.npz") as images:
            for i, pixels in enumerate(images["arr_0"]):
                Image.fromarray(pixels).save(given / part / f"{i:06d}.png")
    size, output = stored("config.json")["size"], given / "from_folder.npz"
    run(given, make_reference, "--data-path", given / "reference", "--image-size", size, "--force", "--output", output)
    flags = ["--samples", given / "samples", "--gt-npz-path", output, "--measured", "reconstruction"]
    run(given, measure, *flags, "--force", "--output", given / "folder.json")
    found, expected = read_result(given / "folder.json"), result["metrics"]
    assert found["protocol"]["reference"]["statistics"] == "stored" and found["protocol"]["reference"]["kind"] == "val"
    assert found["metrics"]["rfid"] == pytest.approx(expected["gfid"], rel=1e-9)
    for metric in ("sfid", "inception_score", "precision", "recall"):
        assert found["metrics"][metric] == pytest.approx(expected[metric], rel=1e-9)
