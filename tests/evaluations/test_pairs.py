"""`evaluations.measure` of originals and reconstructions in pairs, which any program may have written."""

import re
import shutil
import sys

import mini
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine.data.images import image_tensor, to_float, to_pil
from engine.image_metrics import psnr, ssim
from evaluations import measure, reconstruction
from evaluations.comparison import compare
from evaluations.image_pairs import open_pairs
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.protocols.registry import PROTOCOLS
from evaluations.protocols.stored import StoredImages
from evaluations.results import read_result
from tokenizer import reconstruct

COUNT = 24


class Pixels(Extractor):
    """The first 12 numbers of an image, in the place of Inception: 13 images are the least."""

    dim, metric = 12, "fid"
    capabilities = frozenset({"published", "float_images"})
    stamp = "pixels"

    def __init__(self, assets=None):
        super().__init__()

    def forward(self, images_u8):
        return {"pool": images_u8.flatten(1)[:, :12].float() / 255}

    def features_of_floats(self, images):
        return {"pool": images.flatten(1)[:, :12]}


@pytest.fixture(autouse=True)
def pixels(monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "inception", Pixels)


ORIGINALS = mini.random_images(COUNT)
NOISE = torch.randint(-20, 21, ORIGINALS.shape, generator=torch.Generator().manual_seed(1))
RECONSTRUCTIONS = (ORIGINALS + NOISE).clamp(0, 255).to(torch.uint8)


def write(folder, images, suffix="png", mark=""):
    """Images as files in two sub-folders, in an order that is not that of their numbers as text."""
    for number, image in enumerate(images):
        path = folder / f"class{number % 2}" / f"{number:02d}{mark}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pairs as folders, as npz files, as JPEG, and with an image that is missing or of another size. Read only."""
    root = tmp_path_factory.mktemp("pairs")
    write(root / "val", ORIGINALS, "bmp")
    write(root / "theirs", RECONSTRUCTIONS)
    write(root / "jpeg", RECONSTRUCTIONS, "jpg")
    write(root / "both", ORIGINALS, mark="_gt")
    write(root / "both", RECONSTRUCTIONS)
    for name in ("missing", "sized", "double", "broken"):
        shutil.copytree(root / "theirs", root / name)
    (root / "missing" / "class0" / "04.png").unlink()
    (root / "missing" / "class0" / "99.png").write_bytes((root / "theirs" / "class0" / "04.png").read_bytes())
    Image.new("RGB", (16, 15)).save(root / "sized" / "class1" / "07.png")
    Image.new("RGB", (16, 16)).save(root / "double" / "class1" / "07.jpg")
    (root / "broken" / "class1" / "07.png").write_bytes(b"nothing")
    for name, images in (("val", ORIGINALS), ("theirs", RECONSTRUCTIONS), ("short", RECONSTRUCTIONS[:-1])):
        np.savez(root / f"{name}.npz", arr_0=images.permute(0, 2, 3, 1).contiguous().numpy())
    np.savez(root / "small.npz", arr_0=np.zeros((COUNT, 8, 8, 3), np.uint8))
    return root


@pytest.fixture
def measured(place, tmp_path, entry):
    """`measured(originals, reconstructions, *flags)`: the result of two names in the place."""

    def run(originals, reconstructions, *flags, name="result", root=place):
        output = tmp_path / f"{name}.json"
        pair = ["--originals", root / originals, "--reconstructions", root / reconstructions]
        code, _, err = entry(measure.main, *pair, "--device", "cpu", "--output", output, *flags)
        assert code == 0, err
        return read_result(output), err

    return run


INCEPTION = ("--extractor", "inception", "--numbers", "all")


# ---------------------------------------------------------------------------------------------- numbers
def test_scores_are_those_of_the_stored_bits(measured, place):
    """In every form that pairs may have; only rFID and code usage need more than the pairs themselves."""
    by_name, _ = measured("val", "theirs", *INCEPTION)
    metrics = by_name["metrics"]
    assert metrics["psnr"] == pytest.approx(psnr(RECONSTRUCTIONS, ORIGINALS).mean().item(), abs=1e-9)
    assert metrics["ssim"] == pytest.approx(ssim(RECONSTRUCTIONS, ORIGINALS).mean().item(), abs=1e-9)
    assert metrics["ssim_range2"] == pytest.approx(ssim(RECONSTRUCTIONS, ORIGINALS, 2.0).mean().item(), abs=1e-9)
    assert metrics["rfid"] > 0 and metrics["rfid_low"] < metrics["rfid"] < metrics["rfid_high"]
    by_number, _ = measured("val.npz", "theirs.npz", *INCEPTION, name="npz")
    one_folder, _ = measured("both", "both", *INCEPTION, name="both")
    apart, _ = measured("both", "theirs", *INCEPTION, name="apart")
    assert one_folder["metrics"] == metrics == apart["metrics"], "in the same order of names"
    for name in ("psnr", "ssim", "rfid"):  # in another order: sums are rounded otherwise
        assert by_number["metrics"][name] == pytest.approx(metrics[name], rel=1e-5)
    assert one_folder["protocol"]["content"] == apart["protocol"]["content"]


def test_a_result_says_which_pairs_and_how_they_were_stored(measured, place):
    protocol = measured("val", "jpeg", "--extractor", "none")[0]["protocol"]
    assert {key: protocol[key] for key in ("kind", "name", "num_images", "paired", "crop", "resize", "rounding")} == {
        "kind": "reconstruction", "name": "adm", "num_images": COUNT, "paired": "by name", "crop": "none",
        "resize": "none", "rounding": "uint8 as stored",
    }  # fmt: skip
    assert (protocol["original_file_format"], protocol["file_format"], protocol["lossy"]) == ("BMP", "JPEG", "JPEG")
    assert protocol["samples"]["data"] == str(place / "jpeg") and protocol["data"] == str(place / "val")
    assert protocol["image_size_eval"] == 16 and protocol["reference"] is None


def test_a_lossy_format_is_told_and_not_ranked(measured):
    """The loss of the file is no merit or fault of the network."""
    plain, quiet = measured("val", "theirs", "--extractor", "none", name="plain")
    lossy, warned = measured("val", "jpeg", "--extractor", "none", name="lossy")
    assert "stored as JPEG, which may lose details" in warned and "lossy" not in plain["protocol"]
    assert "lose details" not in quiet
    differences = compare([("plain", plain), ("lossy", lossy)]).differences
    assert "lossy: file_format: 'PNG', then 'JPEG'" in differences


def test_two_programs_are_ranked_over_the_same_pairs(measured, place, tmp_path):
    """By the difference of each pair: their intervals overlap, and the better one is certain all the same."""
    worse = (RECONSTRUCTIONS + torch.where(NOISE > 0, 1, -1)).clamp(0, 255).to(torch.uint8)
    write(tmp_path / "worse", worse)
    results = [
        (name, measured("val", folder, "--extractor", "none", name=name)[0])
        for name, folder in (("theirs", "theirs"), ("worse", tmp_path / "worse"))
    ]
    table = compare(results)
    (row,) = (row for row in table.rows if row.metric == "psnr")
    assert not table.differences and row.best == results[0][1]["metrics"]["psnr"]
    assert any(gap.startswith("psnr: worse - theirs") and "(paired)" in gap for gap in table.gaps)


@pytest.mark.parametrize("name", ["adm", "wetok"])
def test_stored_bits_are_rounded_by_nobody(name):
    """Not even by rules that truncate: 8 bits to floats and back are the same 8 bits, for scores and features."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    rules = StoredImages(PROTOCOLS[name]())
    assert torch.equal(rules.to_uint8(to_float(levels)), levels)
    features = rules.features(Pixels(), to_float(levels))["pool"]
    expected = levels.flatten(1)[:, :12].float()
    assert torch.equal(features, expected / 255 if name == "adm" else expected / 127.5 - 1)


def test_pairs_of_this_program_have_the_numbers_of_its_evaluation(
    measured, tmp_path, monkeypatch, world, entry, networks
):
    """Pictures of `tokenizer.reconstruct`, measured as pairs: the same images, the same rules, the same numbers."""
    images = write(tmp_path / "val", ORIGINALS)
    tokenizer = ["--vq-ckpt", networks / "tokenizer", "--device", "cpu"]
    code, _, err = entry(reconstruct.main, *tokenizer, "--data-path", images, "--sample-dir", tmp_path / "pictures")
    assert code == 0, err
    flags = ["--val-path", images, *INCEPTION, "--output", tmp_path / "r.json"]
    monkeypatch.setattr(sys, "argv", ["entry", *map(str, [*tokenizer, *flags])])
    reconstruction.evaluate(reconstruction.parse_args(), world)
    expected = read_result(tmp_path / "r.json")["metrics"]
    found = measured("pictures", "pictures", *INCEPTION, root=tmp_path)[0]["metrics"]
    assert {name: expected[name] for name in found} == pytest.approx(found, rel=1e-9)
    assert {"psnr", "ssim", "ssim_range2", "rfid", "rfid_se"} <= found.keys() and "bits_per_image" not in found


def test_images_of_several_sizes_are_measured_as_they_are(tmp_path, world):
    """Each counts once; how many are read together, and on how many ranks, changes no pair."""
    rng = np.random.default_rng(0)
    shapes = [(20, 12), (20, 12), (9, 30), (20, 12), (9, 30)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number, shape in enumerate(shapes):
            Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    pairs = open_pairs(tmp_path / "a", tmp_path / "b")
    facts = pairs.look(world)
    assert (facts.image_size, facts.least_side) == (None, 9)
    batches = list(pairs.batches(3, world))
    assert [batch.ids.tolist() for batch in batches] == [[0, 1], [2], [3], [4]]
    for ids, originals, reconstructions in batches:
        for number, original, made in zip(ids.tolist(), originals, reconstructions, strict=True):
            for name, image in (("a", original), ("b", made)):
                assert torch.equal(image, image_tensor(Image.open(tmp_path / name / f"{number}.png")))
    on_two = mini.on_ranks(2, lambda rank: [batch.ids.tolist() for batch in pairs.batches(2, rank)])
    assert on_two == [[[0, 1], [4]], [[2], [3]]]


def test_a_preset_names_what_the_files_do_not_tell(measured):
    """Crop and rounding were another program's."""
    result, _ = measured("val", "theirs", "--protocol", "wetok")
    preset = result["protocol"]["preset"]
    assert (preset["name"], preset["not_known"]) == ("wetok+changed", ["crop", "rounding"])
    assert preset["changed"] == ["count: 50000, then 24", "weights: 'published', then 'pixels'"]
    assert "rfid" in result["metrics"] and "ssim_range2" not in result["metrics"]


def test_scores_of_unclamped_floats_are_said_to_be_missing():
    rules = StoredImages(PROTOCOLS["adm"]())
    networks = {"lpips": nn.Identity()}
    assert "lpips" in rules.scores(networks) and "lpips_raw" not in rules.scores(networks)
    assert "no stored image has" in rules.missing_scores(networks)["lpips_raw"] and not rules.missing_scores({})


# ---------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("originals", "reconstructions", "message"),
    [
        ("val", "missing", r"missing has no image for 1 of the others: class0/04; --originals .*val has no image for 1 "
                           r"of the others: class0/99"),
        ("val", "sized", r"sized/class1/07.png has 16x15 pixels, its original .*val/class1/07.bmp has 16x16"),
        ("val", "double", r"class1/07\.\w+ and .*class1/07\.\w+ have one name without suffix"),
        ("val", "broken", r"broken/class1/07.png is not a readable image"),
        ("val", "val", r"are one folder, .*val: then the original of NAME.png must be NAME_gt.png beside it"),
        ("val", "theirs.npz", r"must be two folders or two npz files"),
        ("val.npz", "val.npz", r"are one file"),
        ("val.npz", "short.npz", r"short.npz has 23 images, .*val.npz 24: image 23 \(from 0\) is the first without"),
        ("val.npz", "small.npz", r"small.npz has images of 8x8 pixels, its originals .*val.npz 16x16"),
        ("val", "nothing", r"--reconstructions.*nothing' is not a folder of images"),
    ],
)  # fmt: skip
def test_what_makes_no_pairs_is_named(place, tmp_path, entry, originals, reconstructions, message):
    pair = ["--originals", place / originals, "--reconstructions", place / reconstructions]
    code, _, err = entry(measure.main, *pair, "--extractor", "none", "--device", "cpu", "--output", tmp_path / "r.json")
    assert code == 2 and err.count("error: ") == 1 and "Traceback" not in err
    assert re.search(message, err), err
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "x"], "give --samples PATH, or both --originals PATH and --reconstructions PATH"),
        (["--measured", "generation"], "--measured generation: pairs are a reconstruction"),
        (["--skip-broken"], "--skip-broken: a pair with a broken image has no replacement"),
        (["--protocol", "mar"], "--protocol mar measures no reconstructions; these do: adm, "),
        (["--reference", "train"], "--reference train: of pairs, name a file or folder"),
        (["--text-reader", "x"], "--text-reader, --text-originals and --text-reconstructions belong together"),
        (["--extractor", "inception", "--held-out", "no.npz"], "--held-out: no.npz does not exist"),
        (["--lpips", "--random-stand-in", "--extractor", "none"], "--lpips needs images of 32 px or more"),
    ],
)
def test_flags_that_do_not_fit_pairs_are_refused(place, tmp_path, entry, flags, message):
    pair = ["--originals", place / "val", "--reconstructions", place / "theirs"]
    code, _, err = entry(measure.main, *pair, "--device", "cpu", "--output", tmp_path / "r.json", *flags)
    assert code == 2 and message in err, err


def test_flags_of_pairs_do_not_fit_samples(place, tmp_path, entry):
    output = ["--device", "cpu", "--output", tmp_path / "r.json"]
    code, _, err = entry(measure.main, "--samples", place / "val", "--lpips", "--metrics", "x", *output)
    assert code == 2 and "--lpips, --metrics: of pairs only" in err, err
    code, _, err = entry(measure.main, "--originals", place / "val", *output)
    assert code == 2 and "both --originals PATH and --reconstructions PATH" in err, err


def test_too_few_pairs_are_refused_or_forced(tmp_path, entry, measured):
    """A distance of 12 images in 12 dimensions says little."""
    for name, images in (("a", ORIGINALS), ("b", RECONSTRUCTIONS)):
        write(tmp_path / name, images[:12])
    pair = ["--originals", tmp_path / "a", "--reconstructions", tmp_path / "b", "--extractor", "inception"]
    code, _, err = entry(measure.main, *pair, "--device", "cpu", "--output", tmp_path / "r.json")
    assert code == 2 and "the reconstruction to measure: 12 images, fewer than 13" in err and "--force" in err
    result, _ = measured("a", "b", "--extractor", "inception", "--force", root=tmp_path)
    assert "rfid" in result["forced"] and "psnr" not in result["forced"]


def test_a_check_opens_no_image(place, tmp_path, entry):
    """Names make the pairs; what is broken or of another size is found when its header is read."""
    output = ["--extractor", "none", "--device", "cpu", "--output", tmp_path / "r.json", "--check"]
    code, out, err = entry(measure.main, "--originals", place / "val", "--reconstructions", place / "broken", *output)
    assert code == 0 and f"--originals, --reconstructions: 24 pairs by name in {place / 'val'}" in out, err
    code, _, err = entry(measure.main, "--originals", place / "val", "--reconstructions", place / "missing", *output)
    assert code == 2 and "class0/04" in err


def test_a_reference_of_other_images_gives_the_scale_of_the_distance(measured, place):
    """As for a tokenizer: the originals are measured against it too."""
    flags = ["--reference", place / "val.npz", "--reference-kind", "val", *INCEPTION]
    metrics = measured("val.npz", "theirs.npz", *flags)[0]["metrics"]
    assert metrics["fid_real"] == pytest.approx(0, abs=1e-6) and metrics["rfid"] > 1e-4
