"""Errors of numbers: their formulas, how results hold them, and what is ranked by them."""

import json

import numpy as np
import pytest
import torch

from evaluations.comparison import compare
from evaluations.metrics.blocks import block_numbers
from evaluations.metrics.intervals import (
    bias_corrected,
    independent_difference,
    jackknife,
    of_blocks,
    of_folds,
    of_fraction,
    of_images,
    paired_difference,
    student_quantile,
)
from evaluations.protocols.accumulators import mean_of_images
from evaluations.result_intervals import difference_in, estimate_in, interval_section, value_text, with_errors
from evaluations.results import read_result, scalars_of, write_result


def test_the_factor_of_the_interval_is_that_of_student():
    assert [round(student_quantile(freedom), 3) for freedom in (4, 9, 10**6)] == [2.776, 2.262, 1.96]


def test_the_jackknife_of_a_mean_is_its_standard_error_and_has_no_bias():
    """Blocks of one image: exactly sd/sqrt(n)."""
    values = np.random.default_rng(0).standard_normal(12)
    estimate = jackknife(values.mean(), [np.delete(values, i).mean() for i in range(12)])
    assert estimate.se == pytest.approx(values.std(ddof=1) / np.sqrt(12), rel=1e-12)
    assert bias_corrected(estimate).value == pytest.approx(values.mean(), rel=1e-12)
    assert estimate.high - estimate.low == pytest.approx(2 * student_quantile(11) * estimate.se)


def test_a_bias_of_one_over_m_is_removed():
    """theta_m = 3 + 5/m exactly: the jackknife gives 3."""
    estimate = jackknife(3 + 5 / 100, [3 + 5 / 90] * 10)
    assert bias_corrected(estimate).value == pytest.approx(3, rel=1e-12)


def test_per_image_values_have_the_textbook_error_and_means_without_each_block():
    values = np.random.default_rng(1).standard_normal(33)
    blocks = block_numbers(33).numpy()
    estimate = of_images(values, blocks)
    assert (estimate.value, estimate.se) == pytest.approx((values.mean(), values.std(ddof=1) / np.sqrt(33)))
    assert estimate.parts == pytest.approx([values[blocks != block].mean() for block in range(10)])
    table = torch.from_numpy(np.stack([values, values]))
    assert mean_of_images(["a", "b"], table).metrics == dict(zip("ab", table.mean(1).tolist(), strict=True))
    assert not mean_of_images(["a"], table[:1, :1]).errors  # of one image nothing is known


def test_a_fraction_from_counts_is_that_of_its_values():
    """Of 33 images, as `of_images` has it from zeros and ones."""
    values, blocks = np.random.default_rng(1).integers(0, 2, 33), block_numbers(33).numpy()
    hits, counts = np.bincount(blocks, values, 10), np.bincount(blocks)
    found, expected = of_fraction(hits, counts), of_images(values, blocks)
    assert found.value == expected.value and found.freedom == expected.freedom == 32
    assert found.se == pytest.approx(expected.se, rel=1e-12) and found.parts == pytest.approx(expected.parts, rel=1e-12)
    with pytest.raises(ValueError, match="found 1"):
        of_fraction([1], [1])


def test_blocks_and_folds_have_the_error_of_their_mean():
    assert (of_blocks([1, 2, 3]).value, of_blocks([1, 2, 3]).se) == pytest.approx((2, 1 / np.sqrt(3)))
    assert (of_folds(9.0, [1, 2, 3]).value, of_folds(9.0, [1, 2, 3]).se) == pytest.approx((9, 1 / np.sqrt(3)))
    with pytest.raises(ValueError, match="2 or more"):
        of_blocks([1.0])


def test_what_two_numbers_have_in_common_cancels():
    """Images that are hard for both: a small paired difference is told apart, the independent one is not."""
    rng = np.random.default_rng(2)
    hardness, blocks = rng.standard_normal(400), block_numbers(400).numpy()
    first = of_images(hardness + 0.01 * rng.standard_normal(400), blocks)
    second = of_images(hardness + 0.05 + 0.01 * rng.standard_normal(400), blocks)
    paired, independent = paired_difference(first, second), independent_difference(first, second)
    assert paired.value == independent.value == pytest.approx(0.05, abs=0.005)
    assert paired.excludes_zero and not independent.excludes_zero
    with pytest.raises(ValueError, match="no common parts"):
        paired_difference(first, of_blocks([1.0, 2.0]))


# ---------------------------------------------------------------------------------------------- results
def written(folder, name, shift, ids="images 0 to 399", noise=0.01, **more):
    """A result of per-image values: the same hard images for all, better by `shift`."""
    hardness = np.random.default_rng(3).standard_normal(400)
    values = 20 + hardness + shift + noise * np.random.default_rng(len(name)).standard_normal(400)
    error = of_images(values, block_numbers(400).numpy())
    path = folder / f"{name}.json"
    write_result(path, {"psnr": error.value, "plain": 1.0}, {"kind": "r"}, errors={"psnr": error}, ids=ids, **more)
    return name, read_result(path)


def test_a_result_holds_error_interval_and_parts(tmp_path):
    """Beside the number, which `scalars_of` returns alone; the parts with the rule of the blocks and the images."""
    _, result = written(tmp_path, "a", 0.0)
    metrics = result["metrics"]
    assert list(metrics) == ["psnr", "psnr_se", "psnr_low", "psnr_high", "plain"]
    assert metrics["psnr_low"] < metrics["psnr"] < metrics["psnr_high"] and scalars_of(metrics).keys() == {
        "psnr",
        "plain",
    }
    section = result["intervals"]
    assert section["ids"] == "images 0 to 399" and "RandomState" in section["blocks"]
    assert len(section["parts"]["psnr"]["values"]) == 10 and section["parts"]["psnr"]["form"] == "images"
    assert value_text(metrics, "psnr") == "20 ± 0.095" or " ± " in value_text(metrics, "psnr")
    assert estimate_in(result, "plain") is None and value_text(metrics, "plain") == "1"


def row(comparison, metric):
    return next(row for row in comparison.rows if row.metric == metric)


def test_results_over_the_same_images_are_compared_by_the_difference(tmp_path):
    """A twentieth of a dB is told apart over the same images, and not over others."""
    first, second = written(tmp_path, "a", 0.0), written(tmp_path, "bb", 0.05)
    compared = compare([first, second])
    assert row(compared, "psnr").best == second[1]["metrics"]["psnr"]
    assert "(paired)" in compared.gaps[0] and "+0.05" in compared.gaps[0]
    assert row(compared, "plain").best is None

    other = compare([first, written(tmp_path, "ccc", 0.05, ids="other images")])
    assert row(other, "psnr").best is None and "(independent): not told apart" in other.gaps[0]
    assert [" ± " in cell for cell in row(other, "psnr").cells()] == [True, True]


def test_the_best_of_three_is_told_apart_from_each(tmp_path):
    results = [written(tmp_path, "a", 0.0), written(tmp_path, "bb", 0.05), written(tmp_path, "ccc", 0.0501)]
    assert row(compare(results), "psnr").best is None
    assert row(compare(results[:2]), "psnr").best is not None


def test_results_of_earlier_versions_are_shown_and_not_ranked(tmp_path):
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"metrics": {"psnr": 30.0}, "protocol": {"kind": "r"}}))
    new = written(tmp_path, "a", 0.0)
    compared = compare([new, ("old", read_result(old))])
    assert row(compared, "psnr").best is None and row(compared, "psnr").cells()[1] == "30" and not compared.gaps
    assert difference_in(new[1], read_result(old), "psnr") is None


def test_a_standard_error_under_its_older_name_ranks(tmp_path):
    results = []
    for name, loss in (("a", 5.0), ("b", 4.0)):
        path = tmp_path / f"{name}.json"
        write_result(path, {"val_loss": loss, "val_loss_stderr": 0.01}, {"kind": "v"})
        results.append((name, read_result(path)))
    assert row(compare(results), "val_loss").best == 4.0


def test_numbers_of_other_settings_are_not_ranked(tmp_path):
    """As coverage of other sizes: the definition stands in the result, and the difference is named."""
    first = written(tmp_path, "a", 0.0, definitions={"psnr": {"measured_images": 400}})
    second = written(tmp_path, "bb", 0.05, definitions={"psnr": {"measured_images": 300}})
    compared = compare([first, second])
    assert row(compared, "psnr").best is None and any("measured_images" in text for text in compared.differences)


def test_values_that_are_all_equal_have_no_error():
    """None of 20 images is memorized: that is no proof that none ever is. Every image has the same bits."""
    measured = mean_of_images(["memorized", "psnr"], torch.stack([torch.zeros(20), torch.arange(20.0)]).double())
    measured.add_estimate("bits_per_image", jackknife(1024.0, [1024.0] * 10))
    entries = with_errors(measured.metrics, measured.errors)
    assert entries.keys() == {"memorized", "psnr", "psnr_se", "psnr_low", "psnr_high", "bits_per_image"}
    assert interval_section(measured.errors, "images 0 to 19")["parts"].keys() == {"psnr"}
    assert interval_section({"bits_per_image": measured.errors["bits_per_image"]}, "images 0 to 19") == {}
