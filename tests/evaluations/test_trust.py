"""Numbers that should not be trusted: refused by name, or forced and marked as such wherever they are shown."""

import json
import sys
from argparse import Namespace

import mini
import numpy as np
import pytest

from engine.data.images import to_pil
from evaluations import compare as compare_entry
from evaluations import make_reference, measure
from evaluations.comparison import compare
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.protocols.trust import least_images, require_trust
from evaluations.report.first_screen import first_screen
from evaluations.report.run_folder import RunFolder
from evaluations.report.sections import numbers
from evaluations.results import read_result, scalars_of, write_result


class Pixels(Extractor):
    """The first 12 numbers of an image, in the place of Inception: 13 images are the least."""

    dim, metric = 12, "fid"
    capabilities = frozenset({"published"})
    stamp = "pixels"

    def __init__(self, assets=None):
        super().__init__()

    def forward(self, images_u8):
        return {"pool": images_u8.flatten(1)[:, :12].float() / 255}


@pytest.fixture(autouse=True)
def pixels(monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "inception", Pixels)


def images(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return mini.random_images(count, size, seed).permute(0, 2, 3, 1).contiguous().numpy()


def statistics(count: int) -> dict[str, np.ndarray]:
    features = images(count, seed=9).transpose(0, 3, 1, 2).reshape(count, -1)[:, :12] / 255
    return {"mu": features.mean(0), "sigma": np.cov(features.T)}


def measured(tmp_path, entry, samples: np.ndarray, *flags, name="result", **reference):
    """(exit code, output, result) of `evaluations.measure`."""
    np.savez(tmp_path / "samples.npz", arr_0=samples)
    path = tmp_path / reference.pop("file", "reference.npz")
    np.savez(path, **reference)
    output = tmp_path / f"{name}.json"
    arguments = ["--samples", tmp_path / "samples.npz", "--gt-npz-path", path, "--output", output, "--device", "cpu"]
    code, out, err = entry(measure.main, *arguments, *flags)
    return code, out + err, read_result(output) if output.is_file() else None


# ---------------------------------------------------------------------------------------------- what is refused
TRAIN = {"kind": np.array("train")}
CASES = {
    "few samples": (12, 8, {**TRAIN, **statistics(50), "num_images": 50}, "to measure: 12 images, fewer than 13"),
    "few in the reference": (20, 8, {**TRAIN, "arr_0": images(12)}, "reference: 12 images, fewer than 13"),
    "few by its count": (20, 8, {**TRAIN, **statistics(50), "num_images": 12}, "reference: 12 images, fewer than 13"),
    "few by its rank": (20, 8, {**TRAIN, **statistics(8)}, "covariance has rank 7 of 12, as that of 8 images"),
    "another size": (20, 16, {**TRAIN, "arr_0": images(20)}, "images of 8 px, those to measure have 16 px"),
    "another size by name": (
        20, 8, {"file": "VIRTUAL_imagenet256_labeled.npz", **statistics(50)}, "images of 256 px, those to",
    ),
    "another kind": (20, 8, {"kind": np.array("val"), "arr_0": images(20)}, "kind train, this one is val"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_a_number_that_should_not_be_trusted_is_refused_or_forced(case, tmp_path, entry):
    """Both sides count; nothing is computed. With --force the number is there, and its reason with it."""
    count, size, reference, reason = CASES[case]
    code, text, result = measured(tmp_path, entry, images(count, size), **reference)
    assert (code, result) == (2, None) and reason in text and "marked as forced: --force" in text
    code, text, _ = measured(tmp_path, entry, images(count, size), "--check", **reference)
    assert code == 2 and reason in text and "ready" not in text

    code, text, result = measured(tmp_path, entry, images(count, size), "--force", **reference)
    assert code == 0 and scalars_of(result["metrics"]).keys() == result["forced"].keys()
    assert all(reason in told for told in result["forced"].values()) and " (forced)" in text
    assert reason in result["protocol"]["reference"]["forced"][0]


def refused(tmp_path, entry, *flags, samples=20, monkeypatch, **reference):
    """The error of a run, without its needs, and that of --check: both of code 2."""
    code, text, _ = measured(tmp_path, entry, images(samples), *flags, "--check", **reference)
    assert code == 2 and "ready:" not in text, text
    with monkeypatch.context() as patch:
        patch.setattr(measure, "require", lambda args, needs: None)
        code, run_text, _ = measured(tmp_path, entry, images(samples), *flags, **reference)
    assert code == 2, run_text
    return run_text.partition("error: ")[2].strip(), text.partition("error: ")[2].strip()


GOOD = {**TRAIN, "arr_0": images(20)}
LATE = {
    "a split": (["--gt-npz-path", "val"], GOOD, "names the npz file or folder to measure against"),
    "no kind": ([], {"arr_0": images(20)}, "does not say whose statistics it holds"),
    "other weights": ([], {**TRAIN, **statistics(50), "num_images": 50, "extractor": np.array("fid"),
                           "extractor_weights": np.array("others")}, "was made with other weights of the extractor"),
    "other features": ([], {**TRAIN, **statistics(50), "extractor": np.array("clip")}, "holds clip features"),
    "nothing in it": ([], {**TRAIN, "x": np.zeros(2)}, "has neither mu and sigma nor images (arr_0)"),
    "held-out size": (["--held-out", "HELD"], GOOD, "images of 16 px, the others have 8 px"),
    "no held-out": (["--held-out", "absent.npz"], GOOD, "--held-out: absent.npz does not exist"),
    "held-out for nothing": (["--held-out", "FITTING", "--numbers", "frechet"], GOOD, "is for --numbers copies"),
    "numbers": (["--numbers", "none", "kid"], GOOD, "none stands alone"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(LATE))
def test_the_check_refuses_what_the_run_refuses_and_with_the_same_message(case, tmp_path, entry, monkeypatch):
    """All of it is known before the first batch: nobody starts a job that ends when its images are there."""
    flags, reference, reason = LATE[case]
    for name, size in (("HELD", 16), ("FITTING", 8)):
        np.savez(tmp_path / f"{name}.npz", arr_0=images(20, size))
    flags = [str(tmp_path / f"{flag}.npz") if flag in ("HELD", "FITTING") else flag for flag in flags]
    of_run, of_check = refused(tmp_path, entry, *flags, monkeypatch=monkeypatch, **reference)
    assert reason in of_run and of_check == of_run


def test_enough_images_are_measured_with_a_warning_below_ten_thousand(tmp_path, entry):
    code, text, result = measured(tmp_path, entry, images(13), **TRAIN, **statistics(13), num_images=13)
    assert code == 0 and "forced" not in result and "(forced)" not in text
    assert "fewer than 10000 images (generation to measure 13, reference 13)" in text
    facts = {"num_images": 20_000, "kind": "train"}
    flags = Namespace(force=False, force_reference=False)
    require_trust(facts, flags, "generation", 10_000, 8, Pixels())
    assert "forced" not in facts


def test_the_flag_for_the_kind_accepts_nothing_else(tmp_path, entry):
    reference = {"kind": np.array("val"), "arr_0": images(20)}
    code, _, result = measured(tmp_path, entry, images(20), "--force-reference", **reference)
    assert code == 0 and "this one is val" in result["forced"]["fid_generated"]
    code, text, _ = measured(tmp_path, entry, images(5), "--force-reference", name="few", **reference)
    assert code == 2 and "5 images, fewer than 13" in text and "this one is val" not in text


def test_the_least_number_is_that_of_the_largest_covariance():
    """2,049 images for FID; sFID has fewer features. EfficientNet-Lite0 needs 113."""
    assert [least_images(EXTRACTORS["efficientnet_lite0"]), least_images(Pixels)] == [113, 13]
    monkey = type("Wide", (Pixels,), {"spatial_dim": 40})
    assert least_images(monkey) == 41


def test_a_reference_of_too_few_images_is_not_made(tmp_path, entry):
    """Nor is it accepted later without a word, if it was forced."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(mini.random_images(8, 8)):
        to_pil(image).save(folder / f"{number}.png")
    output = tmp_path / "made.npz"
    flags = ["--data-path", folder, "--kind", "train", "--image-size", 8, "--output", output, "--no-images"]
    code, _, err = entry(make_reference.main, *flags)
    assert code == 2 and "reference: 8 images, fewer than 13" in err and not output.exists()
    assert entry(make_reference.main, *flags, "--force")[0] == 0
    with np.load(output) as stored:
        assert (int(stored["num_images"]), int(stored["image_size"]), str(stored["extractor"])) == (8, 8, "fid")
        content = dict(stored)
    code, text, _ = measured(tmp_path, entry, images(20), **content)
    assert code == 2 and "reference: 8 images, fewer than 13" in text


def test_statistics_of_another_extractor_are_refused(tmp_path, entry):
    """By the name of its features, and for what an evaluation keeps for itself."""
    other = {**TRAIN, **statistics(50), "num_images": 50, "extractor": np.array("frechet_lite0")}
    code, text, _ = measured(tmp_path, entry, images(20), "--force", **other)
    assert code == 2 and "holds frechet_lite0 features, the extractor gives fid features" in text
    cached = {"pool_mean": np.zeros(112), "pool_cov": np.eye(112)}
    code, text, _ = measured(tmp_path, entry, images(20), "--force", "--reference-kind", "train", **cached)
    assert code == 2 and "statistics that an evaluation kept for itself" in text


# ---------------------------------------------------------------------------------------------- where it is shown
def result(folder, name, gfid, *, forced):
    reference = {"kind": "train", "num_images": 50, **({"forced": ["4 images"]} if forced else {})}
    path = folder / f"{name}.json"
    metrics = {"gfid": gfid, "distinct": gfid / 10}
    protocol = {"kind": "generation", "reference": reference}
    write_result(path, metrics, protocol, errors=mini.tiny_errors({"distinct": gfid / 10}))
    return path


def test_forced_numbers_are_never_ranked(tmp_path, monkeypatch, capsys):
    """Neither against others nor among themselves; what does not depend on the reference is."""
    both = [result(tmp_path, "a", 3.0, forced=True), result(tmp_path, "b", 2.0, forced=True)]
    rows = compare([(path.stem, read_result(path)) for path in both]).rows
    assert [row.cells() for row in rows] == [["3 (forced)", "2 (forced)"], ["0.3 ± 2.3e-09*", "0.2 ± 2.3e-09"]]

    mixed = [both[0], result(tmp_path, "c", 1.0, forced=False)]
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, mixed)])
    with pytest.raises(SystemExit):
        compare_entry.main()
    printed = capsys.readouterr().out
    assert "3 (forced)" in printed and "1*" not in printed and "a: gfid: 4 images" in printed


def test_a_report_marks_forced_numbers(tmp_path):
    """On its cards and in its tables, with the reason."""
    (tmp_path / "evaluations").mkdir()
    result(tmp_path / "evaluations", "generation", 3.0, forced=True)
    run = RunFolder(tmp_path)
    assert "<b>3 (forced)</b>" in first_screen(run) and ">3 (forced)<" in numbers(run)
    assert "gfid should not be trusted: 4 images" in numbers(run)
    assert json.loads((tmp_path / "evaluations" / "generation.json").read_text())["forced"] == {"gfid": "4 images"}
