"""Several tokenizers in one picture: which numbers are joined, which are compared, and what a reader sees."""

import csv
import io
import re
import shutil
import xml.etree.ElementTree as ET

import mini
import pytest
from mains import main_of, refused

from engine.messages import UserError
from evaluations.metrics.intervals import Estimate
from evaluations.results import write_result
from evaluations.scaling.drawing import Scale, count_text, draw, log_ticks
from evaluations.scaling.figures import FIGURES, pairs_of_figure
from evaluations.scaling.labels import Box, place_labels
from evaluations.scaling.panels import make_panel
from evaluations.scaling.quantities import Value, quantity_of
from evaluations.scaling.readings import read_points
from evaluations.scaling.sizes import SizedTokenizer

main = main_of("evaluations.scaling")
WIDTHS = {"S": 8, "M": 16, "L": 32}
STEP = "step_00000300"
HOSTILE = "<img src=x onerror=alert(1)>"


def tokenizer_facts(path, name):
    """What a result says about the weights at a path."""
    return {"path": str(path), "weights": "model", "fingerprint": name.ljust(64, "0"), "stamp": {}}


def write(path, facts, metrics, errors=None, **protocol):
    """A result of 500 images, whose errors are {metric: standard error}."""
    estimates = {name: Estimate(metrics[name], se, 9, "blocks", ()) for name, se in (errors or {}).items()}
    facts = {"kind": "reconstruction", "num_images": 500, "tokenizer": facts, **protocol}
    write_result(path, metrics, facts, estimates)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three trainings whose decoders grow, each with reconstructions; and an AR probing of each, elsewhere."""
    root = tmp_path_factory.mktemp("runs")
    for number, (name, width) in enumerate(WIDTHS.items()):
        config = mini.tokenizer_config(f"model.hybrid.decoder.width={width}", "loop.steps=400")
        checkpoint = mini.export(root / "trained" / name / "checkpoints" / STEP, config, mini.tokenizer_of(config))
        facts = tokenizer_facts(checkpoint, name)
        metrics = {"rfid": 3.0 - number, "psnr": 20.0 + number}
        write(
            root / "trained" / name / "evaluations" / "reconstruction.json", facts, metrics, {"rfid": 0.2, "psnr": 0.1}
        )

        # As `evaluations.ar_probe` leaves it, wherever it lies.
        probe = root / "probed" / f"of_{name}"
        generator = {"path": f"gpt_{name}", "fingerprint": name * 64}
        write(probe / "evaluations" / "search.json", facts, {"best_guidance_scale": 1 + number, "gfid": 9.0 - number},
              {"gfid": 0.3}, kind="generation", gpt=generator, sampler={"guidance_scale": 1 + number})  # fmt: skip
        write(probe / "evaluations" / "val_loss.json", facts, {"val_loss": 5.0, "val_loss_stderr": 0.1},
              kind="val_loss", gpt=generator)  # fmt: skip
        write(probe / "linear_probe_gpt" / "result.json", facts, {"top1": 0.5 + 0.1 * number, "val_loss": 1.0},
              kind="linear_probe", gpt=generator)  # fmt: skip
        (probe / "config.yaml").write_text("gpt_configs: []\nprobe_configs: []\n")
    return root


def panel_of(paths, y, x, *, mixed=False):
    """A panel over the points of one series."""
    points, _ = read_points({"": paths})
    return make_panel(quantity_of(x), quantity_of(y), [(p, SizedTokenizer(p)) for p in points], mixed)


# ------------------------------------------------------------------------------------------------ points
def test_results_are_joined_by_the_tokenizer_that_was_measured(runs, tmp_path):
    """Of folders, of folders of folders and of files; what says nothing of a tokenizer is named."""
    write_result(tmp_path / "old.json", {"rfid": 1.0}, {"kind": "reconstruction"})
    write_result(tmp_path / "odd.json", {"rfid": 1.0}, {"tokenizer": {"fingerprint": ["x"]}})
    paths = [runs / "trained", runs / "probed" / "of_S", tmp_path / "old.json", tmp_path / "odd.json"]
    points, left_out = read_points({"": paths})
    assert [point.label for point in points] == ["L", "M", "S"]
    assert left_out == [f"{name}: its protocol does not say which tokenizer was measured" for name in ("old", "odd")]
    assert {measured.name for measured in points[2].results} == {
        "S/reconstruction", "of_S/ar_probe/search", "of_S/ar_probe/val_loss", "of_S/ar_probe/linear_probe_gpt"
    }  # fmt: skip


def test_points_of_one_name_are_told_apart(tmp_path):
    """By the step, else by the folder around them."""
    paths = [f"runs/A/checkpoints/{STEP}", "runs/A/checkpoints/step_00000600", "other/B/tokenizer/checkpoints/" + STEP]
    paths += ["x/C/checkpoints/" + STEP, "y/C/checkpoints/" + STEP, "files/VQ_16.pt"]
    for number, path in enumerate(paths):
        write(tmp_path / f"{number}.json", tokenizer_facts(path, str(number)), {"rfid": 1.0})
    points, _ = read_points({"": sorted(tmp_path.glob("*.json"))})
    assert [p.label for p in points] == ["A, step 300", "A, step 600", "B", "x/C", "y/C", "VQ_16"]
    assert [point.step for point in points[:3]] == [300, 600, 300]


def test_a_tokenizer_belongs_to_one_series(runs):
    with pytest.raises(UserError, match="which is in the series 'a' and in 'b'"):
        read_points({"a": [runs / "trained" / "S"], "b": [runs / "trained" / "S"]})


# ------------------------------------------------------------------------------------------------ quantities
def test_a_metric_is_found_in_the_result_that_is_meant(runs, tmp_path):
    """AR probing is asked for by name; a metric of two results is refused, and both are named."""
    points, _ = read_points({"": [runs / "trained" / "S", runs / "probed" / "of_S"]})
    (point,), sized = points, SizedTokenizer(points[0])
    assert quantity_of("ar_probe/gfid").read(point, sized).number == 9.0
    assert quantity_of("ar_probe/val_loss/val_loss").read(point, sized).number == 5.0
    assert quantity_of("of_*/search/gfid").is_in(point) is False  # of no AR probing
    with pytest.raises(UserError, match="no result with gfid"):
        quantity_of("gfid").read(point, sized)

    facts = tokenizer_facts("a", "S")
    for name, number in (("one", 1.0), ("two", 2.0), ("again", 2.0)):
        write(tmp_path / f"{name}.json", facts, {"gfid": number})
    points, _ = read_points({"": [tmp_path / "two.json", tmp_path / "again.json"]})
    assert quantity_of("gfid").read(points[0], sized).number == 2.0  # one measurement, made twice
    points, _ = read_points({"": [tmp_path / "one.json", tmp_path / "two.json"]})
    with pytest.raises(UserError, match=r"stands in several results \(one/gfid and two/gfid\): say which one"):
        quantity_of("gfid").read(points[0], sized)
    assert quantity_of("two/gfid").read(points[0], sized).number == 2.0


def test_an_error_comes_from_the_interval_or_from_the_standard_error(runs):
    points, _ = read_points({"": [runs / "trained" / "S", runs / "probed" / "of_S"]})
    sized = SizedTokenizer(points[0])
    assert quantity_of("rfid").read(points[0], sized).half_width == pytest.approx(0.2 * 2.262, rel=1e-3)
    loss = quantity_of("ar_probe/val_loss/val_loss").read(points[0], sized)
    assert loss.half_width == pytest.approx(0.1 * 1.96, rel=1e-3)
    assert quantity_of("ar_probe/top1").read(points[0], sized).half_width is None


def test_sizes_come_from_the_weights_that_a_result_names(runs, tmp_path):
    """Without loading them; also where the run was moved since."""
    sizes = {}
    for name in WIDTHS:
        (point,), _ = read_points({"": [runs / "trained" / name]})
        sized = SizedTokenizer(point)
        sizes[name] = {key: quantity_of(key).read(point, sized).number for key in ("parameters", "tokens", "images")}
        assert quantity_of("steps").read(point, sized).number == 300
        batch = mini.tokenizer_config().data.global_batch_size
        assert sizes[name]["images"] == 300 * batch and sizes[name]["tokens"] == 8
    assert sizes["S"]["parameters"] < sizes["M"]["parameters"] < sizes["L"]["parameters"]

    # 300 of 400 steps cost three quarters of the operations of all.
    operations = {}
    for step in (STEP, "step_00000400"):
        (point,), _ = read_points({"": [runs / "trained" / "S"]})
        folder = shutil.copytree(runs / "trained" / "S" / "checkpoints" / STEP, tmp_path / "run" / "checkpoints" / step)
        point.facts = tokenizer_facts(folder, "S")
        operations[step] = quantity_of("compute").read(point, SizedTokenizer(point)).number
    assert operations[STEP] == pytest.approx(0.75 * operations["step_00000400"], rel=1e-12)

    # A tokenizer of flexible length has the tokens that its images were decoded from; no number of several results.
    of_four, of_samples = tmp_path / "r4.json", tmp_path / "g2.json"
    facts = tokenizer_facts(folder, "S")
    write(of_four, facts, {"psnr": 17.0}, num_tokens=4)
    write(of_samples, facts, {"gfid": 9.0}, kind="generation", num_tokens=8, sampler={"num_tokens": 2})
    for files, tokens in {(of_four,): 4, (of_samples,): 2}.items():
        (other,), _ = read_points({"": list(files)})
        assert quantity_of("tokens").read(other, SizedTokenizer(other)).number == tokens
    of_whole = tmp_path / "g.json"  # samples of all tokens, which a result does not count
    write(of_whole, facts, {"gfid": 5.0}, kind="generation", sampler={"guidance_scale": 1})
    for files, tokens in {(of_four, of_samples): "2 and 4", (of_four, of_whole): "4 and 8"}.items():
        (other,), _ = read_points({"": list(files)})
        with pytest.raises(UserError, match=f"its results are of images of {tokens} tokens"):
            quantity_of("tokens").read(other, SizedTokenizer(other))

    # A config that lacks the batch is told.
    config = tmp_path / "run" / "checkpoints" / "step_00000400" / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("global_batch_size", "another_key"))
    with pytest.raises(UserError, match=r"config.yaml does not say data.global_batch_size"):
        SizedTokenizer(point).images()
    config.write_text(text)

    # The path of a result leads nowhere, but its run is known.
    point.facts = tokenizer_facts("gone/checkpoints/step_00000400", "S")
    point.folders = [tmp_path / "run"]
    assert SizedTokenizer(point).parameters() == sizes["S"]["parameters"]
    point.folders = []
    with pytest.raises(UserError, match="its weights are not at gone"):
        SizedTokenizer(point).parameters()


# ------------------------------------------------------------------------------------------------ comparing
def test_other_protocols_and_forced_numbers_are_left_out_and_named(runs, tmp_path):
    """With their reasons; on request they are drawn, and still count in no correlation."""
    for name, protocol in (("other", {"crop": "none"}), ("forced", {"reference": {"forced": ["too few images"]}})):
        facts = tokenizer_facts(f"runs/{name}/checkpoints/{STEP}", name)
        write(tmp_path / f"{name}.json", facts, {"rfid": 0.5, "psnr": 1.0}, **protocol)
    paths = [runs / "trained", tmp_path / "other.json", tmp_path / "forced.json"]
    panel = panel_of(paths, "rfid", "psnr")
    assert [dot.point.label for dot in panel.dots] == ["L", "M", "S"]
    assert any("other, left out: crop: None, then 'none'" in line for line in panel.left_out)
    assert any("forced, left out: rfid was forced (too few images)" in line for line in panel.left_out)

    # PSNR needs no reference, so that it was not forced, and a difference of references does not matter.
    assert len(panel_of(paths, "psnr", "steps").dots) == 4

    mixed = panel_of(paths, "rfid", "psnr", mixed=True)
    assert [dot.is_comparable for dot in mixed.dots] == [True, True, True, False, False]
    assert (
        "drawn hollow" in mixed.left_out[0]
        and draw(mixed).count('fill="none" stroke="#2563eb" stroke-width="1.6"') == 2
    )
    assert mixed.agreements[0].correlation.count == 3


def test_a_searched_guidance_scale_may_differ_and_one_that_was_set_may_not(runs, tmp_path):
    """The search finds it; the protocols of the searches must agree otherwise."""
    probed = sorted((runs / "probed").iterdir())
    panel = panel_of([runs / "trained", *probed], "ar_probe/gfid", "parameters")
    assert len(panel.dots) == 3 and not panel.left_out
    for number, name in enumerate(WIDTHS):
        write(tmp_path / f"{name}.json", tokenizer_facts("x", name), {"gfid": 1.0, "psnr": 1.0},
              sampler={"guidance_scale": number})  # fmt: skip
    panel = panel_of(sorted(tmp_path.glob("*.json")), "gfid", "psnr")
    assert len(panel.dots) == 1 and len(panel.left_out) == 2 and "guidance_scale" in panel.left_out[0]


def test_losses_per_token_are_compared_between_equal_tokens_alone(tmp_path):
    """The same network with half of the codes has another loss, whatever it learned."""
    for name, codes in (("a", 32), ("b", 32), ("c", 16)):
        config = mini.tokenizer_config(f"model.quantizer.vq.codebook_size={codes}")
        folder = mini.export(tmp_path / name, config, mini.tokenizer_of(config))
        write(tmp_path / f"{name}.json", tokenizer_facts(folder, name), {"val_loss": 3.0}, unit="nats per token")
    panel = panel_of(sorted(tmp_path.glob("*.json")), "val_loss", "parameters")
    assert [dot.point.label for dot in panel.dots] == ["a", "b"]
    said = "c, left out: a loss per token: of 8 tokens of 32 codes, then of 8 tokens of 16 codes"
    assert panel.left_out == (said,)


def test_checkpoints_of_one_training_have_no_interval(runs, tmp_path):
    """They are not independent."""
    for step in range(1, 5):
        facts = tokenizer_facts(f"runs/A/checkpoints/step_{step:08d}", str(step))
        write(tmp_path / f"{step}.json", facts, {"rfid": 5.0 - step, "gfid": float(step)})
    (agreement,) = panel_of(sorted(tmp_path.glob("*.json")), "gfid", "rfid").agreements
    assert agreement.correlation.value == -1 and "so there is no interval" in agreement.text
    (agreement,) = panel_of([runs / "trained"], "rfid", "psnr").agreements
    assert "-1.00 of 3 points, 95 % interval -1.00 to +0.7" in agreement.text
    assert "a random order agrees or disagrees as much with probability 0.33" in agreement.text


# ------------------------------------------------------------------------------------------------ figures
def test_a_figure_takes_the_published_distance_or_says_what_it_shows_instead(runs, tmp_path):
    points, _ = read_points({"": [runs / "trained", *sorted((runs / "probed").iterdir())]})
    pairs = pairs_of_figure(FIGURES["gigatok_7"], points)
    assert [pair.y.text for pair in pairs] == [
        "rfid", "ar_probe/gfid", "ar_probe/val_loss", "ar_probe/top1"
    ] and {pair.x.text for pair in pairs} == {"parameters"} and not any(pair.note for pair in pairs)  # fmt: skip
    assert all(len(make_panel(p.x, p.y, [(q, SizedTokenizer(q)) for q in points], False).dots) == 3 for p in pairs)

    write(tmp_path / "a.json", tokenizer_facts("a", "a"), {"frechet_lite0_reconstruction": 2.0})
    points, _ = read_points({"": [tmp_path / "a.json"]})
    pair = pairs_of_figure(FIGURES["gigatok_3"], points)[0]
    assert pair.y.metric == "frechet_lite0_reconstruction"
    assert pair.note == "The paper shows rFID here; these results hold frechet_lite0, reconstructed instead."


# ------------------------------------------------------------------------------------------------ drawing
def test_axes_name_sizes_as_people_read_them():
    assert [count_text(size) for size in (250, 40_000, 1_500_000, 2.9e9, 3.2e15)] == [
        "250", "40k", "1.5M", "2.9B", "3.2e15"
    ]  # fmt: skip
    assert log_ticks(1e6, 3e6) == [1e6, 1.2e6, 1.5e6, 2e6, 2.5e6, 3e6] and log_ticks(1.3e8, 2.9e9) == [
        2e8,
        5e8,
        1e9,
        2e9,
    ]
    scale = Scale.over(quantity_of("parameters"), [Value(1e6), Value(1e8)], 0, 100)
    assert scale.is_log and scale.place(1e7) == 50
    assert not Scale.over(quantity_of("rfid"), [Value(1.0), Value(99.0)], 0, 100).is_log


def test_names_hide_neither_points_nor_each_other():
    places = [(100.0, 50.0), (112.0, 50.0), (106.0, 56.0), (330.0, 50.0)]
    labels = place_labels(["first", "second", "third", "at the edge"], places, Box(50, 0, 350, 100))
    boxes = [label.box for label in labels]
    assert all(a.overlap(b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
    assert boxes[3].right <= 350


def test_a_picture_is_a_file_of_its_own_and_says_what_it_shows(runs):
    panel = panel_of([runs / "trained"], "rfid", "parameters")
    root = ET.fromstring(draw(panel, as_file=True))
    texts = [text for element in root.iter() if element.text for text in [element.text]]
    assert root.get("width") == "460" and root.get("role") == "img"
    assert "rFID against tokenizer parameters: 3 tokenizers" in root.get("aria-label")
    assert "rFID (lower is better)" in texts and {"S", "M", "L"} <= set(texts)
    assert any(re.fullmatch(r"S; tokenizer parameters [\d.]+k; rFID 3 ± 0.45", text) for text in texts)


# ------------------------------------------------------------------------------------------------ the command
def test_the_command_writes_page_pictures_and_table(runs, entry, tmp_path, open_page):
    """A reader sees the pictures with names, correlations and what is missing, on a phone and in the dark too."""
    out = tmp_path / "out"
    (tmp_path / "bad").mkdir()
    write(tmp_path / "bad" / "x.json", tokenizer_facts(f"runs/{HOSTILE}/checkpoints/{STEP}", "x"), {"rfid": 1.0})
    arguments = ["--plot", "rfid:parameters", "--plot", "psnr:rfid", "--output", out]
    series = ["--series", "grown", runs / "trained" / "M", runs / "trained" / "L", "--series", HOSTILE,
              runs / "trained" / "S", tmp_path / "bad" / "x.json"]  # fmt: skip
    code, _, err = entry(main, *arguments, *series)
    assert code == 0 and "no rank correlation: 2 comparable points, and it takes 3" in err
    assert {path.name for path in out.iterdir()} == {"index.html", "points.csv", "rfid-parameters.svg", "psnr-rfid.svg"}

    page = open_page(out / "index.html", 400, 900, dark=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("figure.plot svg").count() == 2 and page.locator("g.dot").count() == 6
    assert page.locator("polyline").count() == 1  # the one series with two points; metrics are not joined
    assert "no result with psnr" in page.inner_text("figure.plot >> nth=1")
    assert "all points: Spearman's rank correlation" in page.inner_text("figure.plot >> nth=1")
    assert [row.split("\t")[:2] for row in page.inner_text("tbody").splitlines()][:2] == [
        ["grown", "M"],
        ["grown", "L"],
    ]

    rows = list(csv.DictReader(io.StringIO((out / "points.csv").read_text())))
    assert len(rows) == 6 and rows[0]["x"] == "parameters" and float(rows[0]["y_low"]) < float(rows[0]["y_value"])
    assert rows[0]["x_low"] == "" and rows[0]["comparable"] == "yes" and rows[0]["fingerprint"].startswith("M")

    # The same runs are drawn again, others are refused; nothing else is touched.
    assert entry(main, *arguments, *series)[0] == 0
    assert "is no report of these runs" in refused(entry(main, runs / "trained", "--output", out))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    assert "is not empty, and has no index.html" in refused(
        entry(main, runs / "trained", "--output", tmp_path / "mine")
    )


def test_without_a_wish_the_headline_numbers_are_drawn_over_the_size(runs, entry, tmp_path):
    code, _, err = entry(main, runs / "trained", *sorted((runs / "probed").iterdir()), "--output", tmp_path / "out")
    assert code == 0, err
    pictures = {path.stem for path in (tmp_path / "out").glob("*.svg")}
    assert pictures == {
        "rfid-parameters", "psnr-parameters", "ar_probe_gfid-parameters", "ar_probe_val_loss-parameters",
        "ar_probe_top1-parameters",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name runs or result files"),
        (["{runs}/nothing"], "is neither a result file nor a folder"),
        (["{runs}/trained/S/checkpoints"], "holds no results"),
        (["--series", "a"], "--series a has no runs"),
        (["{runs}/trained", "--plot", "rfid"], "'' names no metric; accepted are parameters, tokens"),
        (["{runs}/trained", "--plot", "fid:parameters"], "no tokenizer has both fid and parameters"),
        (["{runs}/trained", "--figure", "gigatok_6"], "no picture of gigatok_6 has a point"),
    ],
)
def test_wrong_calls_are_refused(runs, entry, tmp_path, arguments, message):
    arguments = [text.format(runs=runs) for text in arguments]
    assert message in refused(entry(main, *arguments, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
