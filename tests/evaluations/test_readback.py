"""text_readback: crops, the reader, scores and anchors, the commands, and what the report shows."""

import json
import math
import re
from itertools import pairwise

import mini
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.checkpoint.weights import num_parameters
from engine.config import load_config
from engine.data.images import image_tensor, to_float
from engine.data.text_pictures import ALPHABET, Word, draw_picture
from engine.messages import UserError
from engine.run_log import read_metrics
from evaluations import compare, measure, reconstruction, text_readback, text_reader
from evaluations.metrics.blocks import block_numbers
from evaluations.metrics.registry import find_metric
from evaluations.readback import score
from evaluations.readback.crops import CROP_HEIGHT, CROP_WIDTH, cut_words, standardized
from evaluations.readback.degradation import blurred, compressed, shrunk_and_enlarged
from evaluations.readback.measurement import TextReadback
from evaluations.readback.model import Reader, ReaderConfig, decoded, encoded, load_reader, read_words
from evaluations.readback.pictures import DrawnPictures
from evaluations.readback.score import ReadingTable, levenshtein, likeness
from evaluations.readback.training import ReaderTrainConfig, train
from evaluations.readback.training_crops import draw_crops
from evaluations.report import __main__ as report
from evaluations.results import read_result
from tokenizer import load_tokenizer
from tokenizer.training.config import TokenizerTrainConfig

words_of_letters = st.text(alphabet="AB1", max_size=7)


# ---------------------------------------------------------------------------------------------- scores
def slow_distance(first: str, second: str) -> int:
    """The definition, by recursion."""
    if not first or not second:
        return max(len(first), len(second))
    change = slow_distance(first[1:], second[1:]) + (first[0] != second[0])
    return min(change, slow_distance(first[1:], second) + 1, slow_distance(first, second[1:]) + 1)


@settings(max_examples=60, deadline=None)
@given(first=words_of_letters, second=words_of_letters)
def test_the_distance_is_levenshteins(first, second):
    assert levenshtein(first, second) == slow_distance(first, second)
    assert 0 <= likeness(first, second) <= 1 and (likeness(first, second) == 1) == (first == second)


def table_of(words_per_picture: int, num_pictures: int, misread_original: float, right: float, world) -> dict:
    """The result of pictures in which given fractions of the words are read."""
    rng = np.random.default_rng(0)
    table = ReadingTable([8] * num_pictures)
    for picture in range(num_pictures):
        truth = ["AB"] * words_per_picture
        original = ["AB" if u >= misread_original else "" for u in rng.random(words_per_picture)]
        read = ["AB" if u < right else "A" for u in rng.random(words_per_picture)]
        table.add(picture, truth, original, {"": read, "blur": truth, "jpeg": [""] * words_per_picture})
    return table.result(world)


def test_scores_count_words_that_are_read_on_the_originals(world):
    """Means over words, errors over pictures; a misread word is half right by letters."""
    result = table_of(words_per_picture=10, num_pictures=50, misread_original=0.2, right=0.6, world=world)
    exact, facts = result.metrics["read_exact_8"], result.metrics["read_by_height"]["8"]
    assert facts["words"] == 500 and 60 <= facts["left_out"] <= 140
    assert exact == pytest.approx(0.6, abs=0.06) and result.metrics["read_exact"] == exact
    assert result.metrics["read_ned"] == pytest.approx(exact + (1 - exact) / 2)
    assert result.errors["read_exact_8"].se == pytest.approx(math.sqrt(0.24 / 8 / 50), rel=0.25)
    assert facts["read_exact_low"] < exact < facts["read_exact_high"]
    assert (result.metrics["read_exact_blur"], result.metrics["read_exact_jpeg"]) == (1, 0)
    assert facts["read_exact_jpeg"] == 0 and facts["read_ned_blur"] == 1


@pytest.mark.parametrize(
    ("num_pictures", "misread", "reason"),
    [
        (50, 0.7, "the reader reads 1.. of 500 words on the originals, fewer than 50%"),
        (5, 0.0, "the reader reads 50 words on the originals, fewer than 100; measure more pictures"),
    ],
)
def test_a_height_that_cannot_be_judged_has_no_number(num_pictures, misread, reason, world):
    """Neither it, nor the mean over all heights; the reason says why."""
    result = table_of(10, num_pictures, misread, 0.5, world)
    assert not {"read_exact", "read_exact_8", "read_ned", "read_exact_blur"} & result.metrics.keys()
    for name in ("read_exact", "read_exact_8", "read_ned_jpeg"):
        assert re.search(reason, result.unavailable[name])


def test_ranks_together_have_the_same_numbers(world):
    """Each adds its own pictures."""

    def add(rank: int, size: int, a_world):
        table = ReadingTable([8, 12] * 60)
        for picture in range(rank, 120, size):
            read = ["AB"] * (picture % 3) + ["BA"] * (3 - picture % 3)
            table.add(picture, ["AB"] * 3, ["AB"] * 3, {"": read, "blur": read, "jpeg": read})
        return table.result(a_world)

    alone = add(0, 1, world)
    assert {"read_exact_8", "read_exact_12", "read_exact"} <= alone.metrics.keys()
    for together in mini.on_ranks(2, lambda a_world: add(a_world.rank, 2, a_world)):
        assert together.metrics == alone.metrics and together.errors == alone.errors


def test_words_without_a_block_are_the_leave_one_out_values(world):
    """Of each height, its own pictures; of the mean over heights, that block of all of them."""
    rng = np.random.default_rng(3)
    heights = [8, 12] * 60
    table = ReadingTable(heights)
    right = rng.integers(0, 4, len(heights))
    for picture, count in enumerate(right):
        read = ["AB"] * count + ["BA"] * (3 - count)
        table.add(picture, ["AB"] * 3, ["AB"] * 3, {"": read, "blur": read, "jpeg": read})
    result = table.result(world)

    blocks = block_numbers(60).numpy()
    parts = {
        height: [right[start::2][blocks != block].sum() / (3 * (blocks != block).sum()) for block in range(10)]
        for start, height in enumerate((8, 12))
    }
    for height, values in parts.items():
        assert result.errors[f"read_exact_{height}"].parts == pytest.approx(values)
    mean = result.errors["read_exact"]
    assert mean.parts == pytest.approx(np.mean(list(parts.values()), axis=0)) and mean.freedom == 118
    of_heights = [result.errors[f"read_exact_{height}"].se for height in (8, 12)]
    assert mean.se == pytest.approx(math.hypot(*of_heights) / 2)


def test_readings_of_one_height_rank_like_the_whole():
    """And only by equal pictures and readers; anchors say nothing about a network."""
    part = find_metric("read_exact_12")
    assert part.better == "higher" and part.depends_on == ("text_readback",) and "12 px" in part.title
    assert find_metric("read_exact_blur").better is None and find_metric("psnr_12") is None


# ---------------------------------------------------------------------------------------------- crops and the reader
def test_crops_keep_their_ratio_and_are_standardized():
    image = torch.zeros(3, 60, 400, dtype=torch.uint8)
    image[:, 20:30, 10:40] = 200
    crops = cut_words(image, [Word("A", (10, 20, 40, 30)), Word("B", (0, 10, 390, 40))])
    assert crops.images.shape == (2, CROP_HEIGHT, CROP_WIDTH)
    assert crops.sizes.tolist() == [[32, round(34 * 32 / 14)], [round(42 * 128 / 396), 128]], "with a margin of 20 %"
    for values, (height, width) in zip(standardized(crops.images, crops.sizes), crops.sizes.tolist(), strict=True):
        inside = values[0, :height, :width]
        assert inside.mean().abs() < 1e-4 and inside.std(correction=0) == pytest.approx(1, abs=1e-3)
        assert values[0, height:].abs().sum() + values[0, :, width:].abs().sum() == 0


def test_the_reader_has_the_size_of_its_definition():
    reader = Reader(ReaderConfig())
    assert num_parameters(reader) == 364_421
    assert reader(torch.zeros(2, 1, CROP_HEIGHT, CROP_WIDTH)).shape == (2, 32, 1 + len(ALPHABET))


@given(word=st.text(alphabet=ALPHABET, min_size=1, max_size=6))
def test_what_is_encoded_is_decoded(word):
    """With blanks between letters, and letters that go on for several steps."""
    outputs = [step for letter in encoded(word) for step in (0, letter, letter)]
    assert decoded([*outputs, 0, 0]) == word


def test_training_crops_are_a_function_of_the_seed(world):
    one, again, other = (draw_crops("reader", seed, 60, [64, 256], world) for seed in (0, 0, 1))
    assert torch.equal(one.crops.images, again.crops.images) and one.words == again.words
    assert one.words != other.words and len(one) == 60
    rows = [[0 if i >= len(word) else ALPHABET.index(word[i]) + 1 for i in range(6)] for word in one.words]
    assert one.letters.tolist() == rows and one.lengths.tolist() == [len(word) for word in one.words]
    assert {len(word) for word in one.words} >= {1, 2, 3, 4, 5}, "of small and of large pictures"


def test_a_training_that_was_stopped_goes_on_as_if_it_was_not(tmp_path, world):
    """The same weights and buffers, bit for bit; a finished one is left alone."""

    def run(name: str, *overrides: str):
        small = [
            "model.width=2", "data={num_crops: 40, num_held_out: 10, picture_sizes: [32], global_batch_size: 8}",
            "loop={steps: 6, device: cpu, log_every: 1}", f"loop.run_dir={tmp_path / name}", *overrides,
        ]  # fmt: skip
        train(load_config(ReaderTrainConfig, overrides=small), world)
        return load_reader(tmp_path / name)

    _, whole = run("whole")
    run("parts", "loop.stop_at=3")
    _, parts = run("parts")
    assert parts == whole and whole["seed"] == 0 and whole["steps"] == 6
    assert run("other", "loop.seed=1")[1]["fingerprint"] != whole["fingerprint"]


def test_the_small_reader_reads(text_reader):
    """Most held-out words: the tests below need one that can."""
    assert [r["val/accuracy"] for r in read_metrics(text_reader) if "val/accuracy" in r][-1] > 0.6


def test_another_network_is_no_reader(networks):
    with pytest.raises(UserError, match=r"holds no text reader; python -m evaluations\.text_reader trains one"):
        load_reader(networks / "tokenizer")


# ---------------------------------------------------------------------------------------------- the measurement
FEW = 12  # pictures per height


@pytest.fixture
def few_words(monkeypatch):
    """So few words are enough: small sets for tests that are about something else."""
    monkeypatch.setattr(score, "LEAST_WORDS", 10)


@pytest.fixture(scope="module")
def readback(text_reader):
    """Small pictures, and the small reader."""
    return TextReadback(DrawnPictures(64, per_height=FEW), *load_reader(text_reader))


def read_exact(readback, change) -> dict[int, float]:
    """{height: words read exactly, of those read on the originals} of pictures that `change` made worse."""
    counts: dict[int, list[int]] = {}
    for number in range(len(readback.pictures.heights)):
        picture = readback.pictures.picture(number)
        image = image_tensor(picture.image)
        original, changed = (
            read_words(readback.reader, cut_words(pixels, picture.words)) for pixels in (image, change(image))
        )
        truth = [word.text for word in picture.words]
        is_readable = [read == text for read, text in zip(original, truth, strict=True)]
        is_right = [r and read == text for r, read, text in zip(is_readable, changed, truth, strict=True)]
        total = counts.setdefault(picture.height, [0, 0])
        total[0] += sum(is_right)
        total[1] += sum(is_readable)
    return {height: right / readable for height, (right, readable) in counts.items()}


def test_the_original_is_read_as_the_original(readback, world, few_words):
    """1 by construction, with error 0; the anchors are what their functions leave."""
    measurement = readback.measure(lambda _, images: images, 20, world)
    metrics = measurement.metrics
    assert metrics["read_exact"] == metrics["read_ned"] == 1 and "read_exact_se" not in metrics  # all alike: unknown
    by_height = metrics["read_by_height"]
    for name, change in (("blur", lambda image: blurred(image, 2.0)), ("jpeg", lambda image: compressed(image, 10))):
        expected = read_exact(readback, change)
        assert {int(h): facts[f"read_exact_{name}"] for h, facts in by_height.items()} == pytest.approx(expected)
    arrays = measurement.arrays
    assert arrays["text_heights"].tolist() == [8, 12, 16] and arrays["text_originals"].shape == (3, 3, 64, 64)
    assert np.array_equal(arrays["text_originals"], arrays["text_reconstructions"])


def test_larger_letters_survive_more_and_more_blur_leaves_fewer(readback):
    """Monotone in the height under blur and under shrinking, and in the blur: up to the error of a few words."""
    slack = 0.12
    blurs = [read_exact(readback, lambda image, s=sigma: blurred(image, s)) for sigma in (0.5, 1.5, 3.0)]
    small = read_exact(readback, lambda image: shrunk_and_enlarged(image, 0.4))
    for of_heights in (*blurs, small):
        values = [of_heights[height] for height in (8, 12, 16)]
        assert all(low <= high + slack for low, high in pairwise(values)), of_heights
    for height in (8, 12, 16):
        values = [of_heights[height] for of_heights in blurs]
        assert all(low <= high + slack for high, low in pairwise(values)), values
    assert blurs[0][16] > 0.8 and blurs[2][8] < 0.2, "the range is used"


@pytest.fixture(scope="module")
def tokenizer64(tmp_path_factory):
    """A tokenizer of 64 px with random weights."""
    config = load_config(TokenizerTrainConfig, overrides=[*mini.TOKENIZER, "data.image_size=64"])
    return mini.export(tmp_path_factory.mktemp("tokenizer") / "random", config, mini.tokenizer_of(config))


def test_a_tokenizer_with_random_weights_leaves_nothing_to_read(tokenizer64, text_reader, few_words, tmp_path, entry):
    """The whole command; the stamp has the reader's fingerprint and training seed."""
    output = tmp_path / "evaluations" / "text_readback.json"
    flags = ["--vq-ckpt", tokenizer64, "--text-reader", text_reader, "--num-pictures", FEW, "--output", output]
    code, _, err = entry(text_readback.main, *flags)
    assert code == 0, err
    result = read_result(output)
    assert result["metrics"]["read_exact"] < 0.02 and result["metrics"]["read_ned"] < 0.25
    assert 0.02 < result["metrics"]["read_exact_blur"] < 1
    facts = result["protocol"]["text_readback"]
    assert facts["reader"]["fingerprint"] == load_reader(text_reader)[1]["fingerprint"] and facts["reader"]["seed"] == 0
    assert facts["font"] == "Aileron Regular" and facts["heights"] == [8, 12, 16]

    # The report draws it, with both anchors and a picture of each height.
    assert entry(report.main, tmp_path)[0] == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    part = page.partition('<section id="drawn-text">')[2].partition("</section>")[0]
    assert "Gaussian blur, sigma 2 px" in part and "JPEG, quality 10" in part and part.count("<img") == 6
    assert part.count("<svg") == 2 and "over the height of the letters" in part


def test_drawn_text_is_read_after_the_first_tokens(text_reader, few_words, tmp_path, entry):
    """The pictures are those of the prefix; the result says how many tokens, and is not that of all of them."""
    flexible = ["model.hybrid.flexible={lengths: uniform}", "data.image_size=64"]
    config = mini.tokenizer_config(*flexible)
    folder = mini.export(tmp_path / "flexible", config, mini.tokenizer_of(config))
    output = tmp_path / "text.json"
    flags = ["--text-reader", text_reader, "--num-pictures", 2, "--output", output]
    code, _, err = entry(text_readback.main, "--vq-ckpt", folder, *flags, "--num-tokens", 2)
    assert code == 0, err
    assert read_result(output)["protocol"]["num_tokens"] == 2
    arrays = np.load(output.with_suffix(".npz"))
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.tokenize(to_float(torch.from_numpy(arrays["text_originals"])))
    prefix = tokenizer.detokenize(tokens[:, :2], output="uint8").int().numpy()
    assert np.abs(arrays["text_reconstructions"].astype(int) - prefix).max() <= 1  # of a batch of another size
    whole = tokenizer.detokenize(tokens, output="uint8").int().numpy()
    assert np.abs(whole - prefix).max() > 1
    code, _, err = entry(text_readback.main, "--vq-ckpt", folder, *flags)
    assert code == 2 and "num_tokens" in err  # another result lies there

    # Files have no tokens.
    files = ["--originals", tmp_path, "--reconstructions", tmp_path, "--num-tokens", 2]
    code, _, err = entry(text_readback.main, *files, *flags)
    assert code == 2 and "--num-tokens 2: files have no tokens" in err


def test_results_of_different_readers_are_not_ranked(tokenizer64, text_reader, few_words, tmp_path, entry):
    """The same reader: ranked. Another one: shown, and the difference is named."""
    output = tmp_path / "one.json"
    flags = ["--vq-ckpt", tokenizer64, "--text-reader", text_reader, "--num-pictures", FEW, "--output", output]
    assert entry(text_readback.main, *flags)[0] == 0
    result = json.loads(output.read_text())
    better = json.loads(output.read_text())
    better["metrics"]["read_exact"] = 0.5
    (tmp_path / "same.json").write_text(json.dumps(better))
    better["protocol"]["text_readback"]["reader"]["fingerprint"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(better))

    def row(name: str) -> str:
        out = entry(compare.main, output, tmp_path / name)[1]
        return next(line for line in out.splitlines() if line.startswith("read_exact ")), out

    assert "read_exact_se" in result["metrics"] and re.search(r"0\.5 ± [\d.]+%?\*", row("same.json")[0])
    line, out = row("other.json")
    assert "*" not in line and "text_readback.reader.fingerprint" in out


def test_it_stands_in_the_result_of_a_reconstruction(
    tokenizer64, text_reader, image_folder, few_words, tmp_path, entry
):
    """With the flag; without it, the protocol is what it was."""
    flags = ["--vq-ckpt", tokenizer64, "--val-path", image_folder / "val", "--extractor", "none"]
    with_text = ["--text-reader", text_reader, "--text-pictures", FEW]
    for name, more in (("plain", []), ("text", with_text)):
        code, _, err = entry(reconstruction.main, *flags, *more, "--output", tmp_path / f"{name}.json")
        assert code == 0, err
    plain, text = (read_result(tmp_path / f"{name}.json") for name in ("plain", "text"))
    assert "read_exact_8" in text["metrics"] and text["metrics"]["psnr"] == plain["metrics"]["psnr"]
    assert text["protocol"].pop("text_readback") and text["protocol"] == plain["protocol"]


def test_pictures_for_another_program_go_out_and_come_back(text_reader, few_words, tmp_path, entry):
    """What it gives back is measured by the words that were drawn; a missing file is named."""
    drawn, given = tmp_path / "drawn", tmp_path / "given"
    size = ["--image-size", 64, "--num-pictures", FEW]
    assert entry(text_readback.main, "--draw", drawn, *size)[0] == 0
    files = sorted(drawn.glob("*.png"))
    assert len(files) == 3 * FEW
    assert torch.equal(image_tensor(Image.open(files[4])), image_tensor(draw_picture("evaluation", 0, 4, 64).image))
    given.mkdir()
    for file in files[:-1]:
        (given / file.name).write_bytes(file.read_bytes())

    flags = ["--originals", drawn, "--reconstructions", given, "--text-reader", text_reader]
    code, _, err = entry(text_readback.main, *flags, "--output", tmp_path / "r.json")
    assert code == 2 and "lacks 1 of 36 pictures, such as 000035.png" in err
    (given / files[-1].name).write_bytes(files[-1].read_bytes())
    code, _, err = entry(text_readback.main, *flags, "--output", tmp_path / "r.json")
    assert code == 0, err
    alone = read_result(tmp_path / "r.json")
    assert alone["metrics"]["read_exact"] == 1

    # In the same result as the scores of pairs; the pictures may be pairs as well.
    pairs = ["--originals", drawn, "--reconstructions", given, "--extractor", "none"]
    text = ["--text-originals", drawn, "--text-reconstructions", given, "--text-reader", text_reader]
    code, _, err = entry(measure.main, *pairs, *text, "--output", tmp_path / "pairs.json")
    assert code == 0, err
    together = read_result(tmp_path / "pairs.json")
    assert together["metrics"]["psnr"] == 100 and together["metrics"]["read_exact"] == 1
    assert together["protocol"]["text_readback"] == alone["protocol"]["text_readback"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of: --vq-ckpt TOKENIZER; --draw FOLDER; --originals FOLDER --reconstructions FOLDER"),
        (["--vq-ckpt", "x"], "--text-reader FOLDER is missing"),
        (["--originals", "x", "--text-reader", "y"], "give one of"),
        (["--draw", "OUT/x", "--image-size", 8], "drawn text needs pictures of 16 px or more, not of 8"),
        (["--originals", "OUT", "--reconstructions", "OUT", "--text-reader", "OUT", "--output", "OUT/r.json"],
         "holds no pictures of --draw"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit_are_refused(flags, message, tmp_path, entry):
    flags = [str(flag).replace("OUT", str(tmp_path)) for flag in flags]
    code, _, err = entry(text_readback.main, *flags)
    assert code == 2 and message in err and "Traceback" not in err


def test_sizes_of_crops_that_do_not_fit_are_refused(entry):
    code, _, err = entry(text_reader.main, "data.picture_sizes=[8]", "data.num_crops=0")
    assert code == 2 and "data.num_crops=0" in err and "data.picture_sizes=[8]" in err


# ---------------------------------------------------------------------------------------------- at full size
@pytest.mark.slow
def test_the_table_of_the_docs(tmp_path, world):
    """The reader of 12,000 words on pictures of 256 px: what docs/text_readback.md shows. Minutes."""
    place = f"loop.run_dir={tmp_path}"
    config = load_config(ReaderTrainConfig, ["configs/eval/text_reader.yaml"], [place, "loop.device=cpu"])
    train(config, world)
    readback = TextReadback(DrawnPictures(256, per_height=25), *load_reader(tmp_path))
    changes = {
        "original": lambda image: image,
        "blur 1": lambda image: blurred(image, 1.0),
        "blur 2": lambda image: blurred(image, 2.0),
        "half size": lambda image: shrunk_and_enlarged(image, 1 / 2),
        "third": lambda image: shrunk_and_enlarged(image, 1 / 3),
        "JPEG 10": lambda image: compressed(image, 10),
    }
    rows = {name: read_exact(readback, change) for name, change in changes.items()}
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |")

    assert set(rows["original"].values()) == {1.0}
    for name in ("blur 1", "blur 2", "half size", "third"):
        values = list(rows[name].values())
        assert all(low <= high + 0.02 for low, high in pairwise(values)), name
    assert all(rows["blur 2"][h] <= rows["blur 1"][h] + 0.02 for h in rows["blur 1"])
    assert rows["blur 2"][8] < 0.05 and rows["blur 2"][32] > 0.95
