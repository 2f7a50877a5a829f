"""WeTok's evaluation: padding of whole images, PSNR and SSIM of truncated pixels, Frechet distance of features."""

import goldens
import numpy as np
import pytest
from test_wetok_tokenizer import close

from engine.image_metrics import psnr, ssim
from evaluations.metrics.frechet import frechet_distance
from evaluations.protocols.reconstruction import pad_to
from evaluations.protocols.wetok import truncated_uint8

TINY, MISC = "wetok/tiny", goldens.cases("wetok/tiny", "misc")


def files_with(fact: str) -> list[str]:
    """The files that hold a fact."""
    return [file for file in MISC if fact in goldens.meta(TINY, file)]


@pytest.mark.parametrize("file", files_with("pad"))
def test_whole_images_are_padded_and_cut_back_as_released(file):
    """To multiples of 16, zeros around, the window of the original in pixels."""
    io, pad = goldens.tensors(TINY, file), goldens.meta(TINY, file)["pad"]
    padded, (rows, columns) = pad_to(io["pad/x"], 16)
    goldens.assert_equal(padded, io["pad/padded"], f"{file} padded")
    assert [rows.start, columns.start, rows.stop, columns.stop] == pad["crop_region"]
    assert bool((padded[:, :, rows, columns] == io["pad/x"]).all()) == pad["roundtrip"]


@pytest.mark.parametrize("file", files_with("metric_256"))
def test_psnr_and_ssim_of_both_evaluations(file):
    """At 256 px on bytes, at the original size on the same bytes as float: truncated, never rounded."""
    io, meta = goldens.tensors(TINY, file), goldens.meta(TINY, file)
    made, real = truncated_uint8(io["metric/rec"]), truncated_uint8(io["metric/gt"])
    pairs = {"metric_256": (made, real), "metric_original": (made.float() / 255, real.float() / 255)}
    for name, pair in ((name, pair) for name, pair in pairs.items() if name in meta):
        for metric, function, tolerance in (("psnr", psnr, 1e-4), ("ssim", ssim, 1e-5)):
            for i, (actual, expected) in enumerate(zip(function(*pair).tolist(), meta[name][metric], strict=True)):
                close(actual, expected, f"{file} {name} {metric} of image {i}", tolerance)


@pytest.mark.parametrize("file", files_with("fid"))
def test_frechet_distance(file):
    a, b = (goldens.tensors(TINY, file)[f"fid/{name}"].numpy() for name in "ab")
    distance = frechet_distance(*((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)))
    expected = goldens.meta(TINY, file)["fid"]
    close(distance, expected, f"{file} fid", 1e-6 * expected)
