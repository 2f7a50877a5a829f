"""What a reader of a report sees and can do, in a browser; how a run ended; the size of a page."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from autoregressive.models.registry import GENERATORS
from engine.folder_lock import lock_folder
from engine.messages import UserError
from engine.pipeline import StageLog
from evaluations.metrics.intervals import Estimate
from evaluations.report.charts import central_range, thinned
from evaluations.report.curves import Training
from evaluations.report.ending import Ending, duration_text, pipeline_ending, training_ending
from evaluations.report.first_screen import command_text
from evaluations.report.lengths import lengths_of
from evaluations.report.networks import named_in_words, network_facts
from evaluations.report.number_text import fixed_texts, setting_text
from evaluations.report.page import picture
from evaluations.report.rows import short_labels
from evaluations.report.size import NOTE_PLACE, fit_pictures
from evaluations.report.write import write_report
from evaluations.results import write_result
from tokenizer.models.registry import MODELS, QUANTIZERS

HOSTILE = "<img src=x onerror=document.title='x'>"
CONFIG = """\
model: {{name: hybrid}}
loss: {{l2_weight: 1}}
optim: {{lr: {lr}}}
data: {{name: folder}}
loop: {{steps: 200}}
"""


def trained(folder, lr=0.001, psnr=20.0, steps=200, log="step 200: loss 1\n"):
    """The folder of a tokenizer's training whose PSNR rises to `psnr`, with the grids of two validations."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(lr=lr))
    records = [
        {"step": step, "time": 1000.0 + step, "val/psnr": psnr - 100 / step, "loss": 5 / step}
        for step in range(20, steps + 1, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    start = {"time": 1000.0, "command": ["/home/x/tokenizer/train.py", "--config", "a.yaml"], "processes": 1}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
    (folder / "log.txt").write_text(f"2026-01-01 10:00:00,000 {log}")
    for step in (100, 200):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(folder / "samples" / f"val_{step:08d}.png")
    return folder


@pytest.fixture
def sweep(tmp_path):
    """A folder of three runs, the name of one of which is HTML, and a fourth that failed before it had a folder."""
    root = tmp_path / "sweep"
    for lr, psnr, name in ((0.001, 20.0, "a"), (0.01, 22.0, "b"), (0.1, 9.0, HOSTILE)):
        trained(root / name, lr, psnr)
    planned = {"a": {"values": {"optim.lr": 0.001}}, "d": {"values": {"optim.lr": HOSTILE}, "failure": "exit code 2"}}
    (root / "sweep.json").write_text(json.dumps({"runs": planned}))
    return root


# ------------------------------------------------------------------------------------------------ one run
def test_the_first_screen_says_what_a_run_is_how_it_ended_and_what_came_out(open_page, tmp_path):
    """Without scrolling, in words; the commands name the module and not a path of the machine."""
    page = open_page(write_report([trained(tmp_path / "run")]), 1100, 700)
    seen = page.inner_text("body")
    assert 'tokenizer: CNN and transformer ("hybrid"); data folder' in seen
    assert "finished all 200 steps are done" in seen and "took\n3 min" in seen
    card = page.locator(".card", has_text="PSNR, dB")
    assert "19.5" in card.inner_text() and "held-out pixels" in card.inner_text()
    assert card.bounding_box()["y"] < 700
    page.click("summary >> text=command")
    assert page.inner_text("details[open] pre") == "python -m tokenizer.train --config a.yaml"
    assert "/home/x" not in page.content()


def test_a_generator_on_codes_says_where_they_are(tmp_path):
    """Its config has settings of images, too, which it never read."""
    folder = trained(tmp_path / "run" / "gpt")
    data = "data: {name: folder, tokenize: codes, codes: runs/digits/codes}"
    (folder / "config.yaml").write_text(CONFIG.format(lr=0.001).replace("data: {name: folder}", data))
    facts = network_facts(Training("GPT", folder, ()))
    assert "codes digits/codes" in facts and not any("data" in fact for fact in facts)


def test_lengths_are_drawn_in_ascending_order_and_linked(tmp_path):
    """PSNR by number of tokens and usage of its parts, of the last validation; a run of one length has neither."""
    folder = trained(tmp_path / "run")
    assert "Images from fewer tokens" not in write_report([folder]).read_text()
    record = {"step": 200, "time": 1.0}
    record |= {"val/psnr_tokens_16": 21.5, "val/psnr_tokens_2": 14.25}
    record |= {"val/codebook_usage_from_token_9": 0.875, "val/codebook_usage_from_token_1": 0.5}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    page = write_report([folder]).read_text()
    assert '<a href="#lengths">Images from fewer tokens</a>' in page
    section = page.partition('<section id="lengths">')[2].partition("</section>")[0]
    assert "PSNR by number of tokens" in section and "Codebook usage from a token to the next length" in section
    averaged = {"step": 200, "val_ema/psnr_tokens_2": 15.0, "val_ema/codebook_usage_from_token_1": 0.75}
    assert lengths_of([{"step": 100, "val/psnr_tokens_2": 9.0}, record, averaged, {"step": 201, "loss": 1.0}]) == (
        {"weights": [(2, 14.25), (16, 21.5)], "averaged weights": [(2, 15.0)]},
        {"weights": [(1, 50.0), (9, 87.5)], "averaged weights": [(1, 75.0)]},
    )


def test_every_network_and_quantizer_says_what_it_is():
    """In a few words, so that a page need not leave a reader with a name; plug-ins may do without."""
    for name, component in {**MODELS, **QUANTIZERS, **GENERATORS}.items():
        if component.__module__.startswith(("tokenizer.", "autoregressive.")):
            assert component.__dict__.get("in_words"), name  # its own, not that of the class it derives from
    assert named_in_words({"name": "gpt"}, GENERATORS, known_as="GPT") == GENERATORS["gpt"].in_words
    assert named_in_words({"name": "foreign"}, MODELS) == "foreign" and named_in_words({}, MODELS) == ""


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (["/home/x/tokenizer/train.py", "--config", "a b.yaml"], "python -m tokenizer.train --config 'a b.yaml'"),
        (["vt train", "--config", "vq/VQ_SS256"], "vt train --config vq/VQ_SS256"),
    ],
)
def test_a_command_is_shown_as_it_can_be_typed(start, text):
    assert command_text(start) == text


def test_curves_tell_their_values_and_name_their_axes(open_page, tmp_path):
    """The pointer shows the record that is nearest, below the plot; a click into the legend hides a line."""
    page = open_page(write_report([trained(tmp_path / "run")]))
    chart = page.locator("figure.chart", has_text="Validation PSNR")
    assert [text.text_content() for text in chart.locator("text.axis").all()] == ["step", "dB"]
    chart.scroll_into_view_if_needed()
    area = chart.locator("svg").bounding_box()
    page.mouse.move(area["x"] + area["width"] * 0.97, area["y"] + area["height"] / 2)
    assert chart.locator(".values").inner_text().split() == ["step", "200", "weights", "19.5"]
    assert chart.locator(".values").bounding_box()["y"] >= area["y"] + area["height"] - 1
    page.mouse.move(area["x"] + area["width"] * 0.15, area["y"] + area["height"] / 2)
    assert chart.locator(".values").inner_text().split() == ["step", "20", "weights", "15"]
    chart.locator("button").click()
    assert not chart.locator("polyline").is_visible()


def test_pictures_are_leafed_through_by_step(open_page, tmp_path):
    page = open_page(write_report([trained(tmp_path / "run")]))
    figure = page.locator("figure.by-step")
    assert figure.locator("output").inner_text() == "step 200"
    figure.locator("input").fill("0")
    assert figure.locator("output").inner_text() == "step 100" and figure.locator("img:visible").count() == 1


def test_samples_that_nobody_measured_are_shown(open_page, tmp_path):
    """As the commands that `init` prints draw them."""
    trained(tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "samples").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "run" / "samples" / "grid.png")
    page = open_page(write_report([tmp_path / "run"]))
    assert page.locator("#samples img").count() == 1
    assert "Generated images" in page.inner_text("nav")
    assert "1 training and 0 results" in page.inner_text(".ending")


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_fits_a_phone_and_both_color_schemes(open_page, sweep, dark):
    """Nothing is wider than the window, and text stands out from what is behind it."""
    page = open_page(write_report([sweep]), 400, 800, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    color, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", text)[:3])) for text in (color, paper)]
    assert abs(brightness[0] - brightness[1]) > 500 and (brightness[1] < brightness[0]) == dark


def test_hostile_names_are_text(open_page, tmp_path):
    """A class, a result and a network called like an image element: shown as they are, and nothing is run."""
    run = tmp_path / "run"
    results = run / "evaluations"
    results.mkdir(parents=True)
    write_result(results / "generation.json", {"distinct": 1.0, HOSTILE: 2.0}, {"data": HOSTILE})
    images = np.zeros((2, 3, 4, 4), dtype=np.uint8)
    facts = {"labels": np.array([0, 0]), "nearest": images, "num_candidates": 4, "class_names": np.array([HOSTILE])}
    np.savez(results / "generation.npz", images=images, **facts)
    trained(run / "tokenizer", lr=f'"{HOSTILE}"', log=f"warning: {HOSTILE}\n")
    page = open_page(write_report([run]))
    assert page.inner_text(".row h3") == HOSTILE and page.title() == "run: pipeline with tokenizer, begun 1970-01-01"
    assert page.locator("td", has_text=HOSTILE).count() == 1

    trained(tmp_path / "other" / "tokenizer")
    page = open_page(write_report([run, tmp_path / "other"], tmp_path / "both.html"))
    title = "run / other: comparison of 2 runs, begun 1970-01-01"
    assert page.inner_text(".row h3") == HOSTILE and page.title() == title


# ------------------------------------------------------------------------------------------------ several runs
def test_a_sweep_is_sorted_by_a_click(open_page, sweep):
    """Numbers as numbers, runs without a value last, failed runs named."""
    page = open_page(write_report([sweep]))
    assert page.title() == "sweep: sweep of 4 runs, begun 1970-01-01"  # no name was run
    heads = [head.strip() for head in page.locator("table.sortable th").all_inner_texts()]
    assert heads[:4] == ["run", "state", "lr", "step"]
    assert "The runs differ in optim.lr." in page.inner_text("#runs")

    def column(name):
        return [
            row.locator("td").nth(heads.index(name)).inner_text()
            for row in page.locator("table.sortable tbody tr").all()
        ]

    psnr = "validation PSNR, dB"
    assert sorted(column(psnr)) == ["", "19.5", "21.5", "8.5"]
    page.click("th >> text=PSNR")
    assert column(psnr) == ["8.5", "19.5", "21.5", ""]
    assert column("run") == [HOSTILE, "lr 1e-3", "b", f"lr {HOSTILE}"]  # those of sweep.json by what sets them apart
    page.click("th >> text=PSNR")
    assert column(psnr) == ["21.5", "19.5", "8.5", ""]
    assert "d: exit code 2" in page.inner_text(".note") and column("state")[-1] == "failed"
    assert "held-out pixels; 20 is coarse, 30 is close; higher is better" in page.inner_text(".meanings")
    assert 'tokenizer: CNN and transformer ("hybrid"); data folder' in page.inner_text(".networks")


def test_single_runs_have_a_leader_and_no_best(open_page, sweep):
    """Nobody knows how much runs with other seeds would differ; a page says so, and marks nothing."""
    page = open_page(write_report([sweep]))
    card = page.inner_text(".card >> nth=0")
    assert "highest validation PSNR, dB" in card and "run b, lr 0.01" in card
    assert "next 19.5; single runs, no spread known" in card
    assert page.locator("td.best").count() == 0 and "these are single runs" in page.inner_text("#runs")


@pytest.mark.parametrize(("spread", "is_best"), [(0.1, True), (9.0, False)])
def test_the_best_of_repeated_runs_leads_by_more_than_their_spread(tmp_path, spread, is_best):
    """Two settings, two seeds each: means of 20 and 22, once close together and once far apart."""
    for lr, mean in ((0.001, 20.0), (0.01, 22.0)):
        for seed, sign in ((0, -1), (1, 1)):
            folder = trained(tmp_path / f"lr{lr}-seed{seed}", lr, mean + sign * spread)
            config = (folder / "config.yaml").read_text()
            (folder / "config.yaml").write_text(config.replace("steps: 200", f"steps: 200, seed: {seed}"))
    text = write_report([tmp_path]).read_text()
    assert text.count('class="n best"') == (2 if is_best else 0)  # both runs of the setting
    assert ("best validation PSNR" in text) == is_best and "lr 0.01, mean of 2 seeds" in text
    assert ("ahead by more than chance" if is_best else "the lead may be chance") in text


def test_runs_of_different_code_are_not_ranked(open_page, sweep):
    """The first screen warns of it, with the runs of each commit."""
    for name, sha in (("a", "1" * 40), ("b", "2" * 40)):
        start = {"time": 1000.0, "git": {"sha": sha, "dirty": name == "b"}, "processes": 1}
        (sweep / name / "starts.jsonl").write_text(json.dumps(start) + "\n")
    page = open_page(write_report([sweep]), 1100, 900)
    note = page.locator(".note", has_text="Warning")
    assert "different versions of the code" in note.inner_text() and note.bounding_box()["y"] < 900
    assert note.locator("li").all_inner_texts() == [
        "commit 1111111111: lr 1e-3", f"commit unknown: {HOSTILE}", "commit 2222222222 with changes: b",
    ]  # fmt: skip
    assert page.locator("body > .cards").count() == 0 and page.locator("td.best").count() == 0
    assert "No best run is marked" in page.inner_text("#runs")


def test_usage_of_codebooks_is_counted_too(tmp_path):
    """70 % of 10 codes are fewer than 50 % of 20; table and chart say both in percent."""
    for size, usage in ((10, 0.7), (20, 0.5)):
        folder = trained(tmp_path / f"size_{size}")
        quantizer = f"model: {{name: hybrid, quantizer: {{name: vq, vq: {{codebook_size: {size}}}}}}}"
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("model: {name: hybrid}", quantizer))
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 200, "time": 1200.0, "val/codebook_usage": usage}) + "\n")
    text = write_report([tmp_path]).read_text()
    assert ">7 of 10<" in text and ">10 of 20<" in text and ">70.0%<" in text and "<figcaption>Codebook usage<" in text
    assert "% of codes" in text and "quantizer: nearest of learned code vectors (&quot;vq&quot;)" in text


def test_a_bad_start_does_not_stretch_the_axis_of_all_runs(open_page, tmp_path):
    """The chart zooms to most of the points, says which are outside, and shows all after a click."""
    for name in "ab":
        folder = trained(tmp_path / name)
        records = [{"step": step, "time": 1000.0 + step, "val/psnr": 20 + step / 200} for step in range(20, 201, 20)]
        records[0]["val/psnr"] = 19.9 if name == "a" else -50.0
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = open_page(write_report([tmp_path]))
    chart = page.locator("#curves figure.chart", has_text="Validation PSNR")
    assert "1 of 20 points lie outside, down to -50 dB" in chart.locator(".zoom").inner_text()
    heights = "figure => [...figure.querySelectorAll('circle')].map(dot => Number(dot.getAttribute('cy')))"
    zoomed = chart.evaluate(heights)
    assert max(zoomed) > 250 and max(zoomed[:10]) - min(zoomed[:10]) > 100  # one far below, the others well apart
    chart.locator(".zoom button").click()
    everything = chart.evaluate(heights)
    assert max(everything) < 210 and max(everything[:10]) - min(everything[:10]) < 20
    assert "-60" in chart.locator("g.values-axis:not(.off) text").all_text_contents()


def test_the_curves_of_a_sweep_lie_over_one_another_and_its_links_open_runs(open_page, sweep):
    page = open_page(write_report([sweep]))
    chart = page.locator("#curves figure.chart", has_text="Validation PSNR")
    assert chart.locator("polyline").count() == 3
    page.click("td >> text=/^b$/")
    page.wait_for_selector("#run-2 > details[open]")  # planned ones, then by name: a, <, b
    assert page.locator("#run-1 > details").get_attribute("open") is None


def test_runs_of_one_name_are_told_apart(sweep, tmp_path):
    """By the folder around them; paths of the machine are not shown."""
    trained(tmp_path / "other" / "a")
    text = write_report([sweep / "a", tmp_path / "other" / "a"], tmp_path / "page.html").read_text()
    assert ">sweep/a</a>" in text and ">other/a</a>" in text and str(tmp_path) not in text


def test_the_table_of_runs_shows_intervals_and_what_was_forced(tmp_path):
    """Half of the 95 % interval stands behind a number that has one."""
    for name, error in (("a", {"psnr": Estimate(21.5, 0.1, 9, "blocks", ())}), ("b", {})):
        metrics = {"psnr": 21.5, "rfid": 7.0}
        protocol = {"kind": "reconstruction", "reference": {"forced": ["too few"] if name == "b" else []}}
        write_result(tmp_path / name / "evaluations" / "reconstruction.json", metrics, protocol, error)
    text = write_report([tmp_path]).read_text().partition('id="runs"')[2].partition("</section>")[0]
    assert re.findall(r"<td[^>]*>(21.5[^<]*|7[^<]*)</td>", text) == ["7", "21.5 ± 0.23", "7 (forced)", "21.5"]


@pytest.mark.parametrize("old_title", ["run", None])
def test_a_later_page_takes_the_place_of_an_earlier_one(tmp_path, old_title):
    """Also where its title says something else by now, and for pages of older versions, known by their title alone."""
    run = trained(tmp_path / "run")
    path = write_report([run])
    text = path.read_text()
    assert "<title>run: training of a tokenizer, begun 1970-01-01</title>" in text
    assert '<h1>run: training of a tokenizer, <span class="whole">begun 1970-01-01</span></h1>' in text
    head, _, rest = text.partition('<meta name="runs" content="run">')
    old = f"{head}<title>{old_title}</title>{rest.partition('</title>')[2]}" if old_title else text
    path.write_text(old)
    (run / "starts.jsonl").unlink()
    assert "<title>run: training of a tokenizer</title>" in write_report([run]).read_text()
    path.write_text(old.replace(">run<", ">walk<").replace('content="run"', 'content="walk"'))
    with pytest.raises(UserError, match="is no report of these runs"):
        write_report([run])


# ------------------------------------------------------------------------------------------------ how a run ended
def test_every_way_to_end_is_told(tmp_path):
    """From the records, the lock and the last entry of the log."""
    ends = {
        "finished": trained(tmp_path / "1"),
        "unfinished": trained(tmp_path / "2", steps=100),
        "stopped": trained(
            tmp_path / "3", steps=100, log="stopped by SIGTERM after step 100; the same command continues\n"
        ),
        "failed": trained(tmp_path / "4", steps=100, log="step 100: loss 1\n"),
    }
    with (ends["failed"] / "log.txt").open("a") as file:
        file.write("2026-01-01 10:00:01 process 0: Traceback (most recent call last):\n  File x\nValueError: <why>\n")
    for state, folder in ends.items():
        assert training_ending(folder).state == state
    assert training_ending(ends["failed"]).text == "step 100 of 200: ValueError: <why>"
    assert "stopped by SIGTERM" in training_ending(ends["stopped"]).text

    # All that was asked for is done, but not the whole training.
    early = trained(tmp_path / "5", steps=100)
    (early / "config.yaml").write_text(CONFIG.format(lr=1).replace("steps: 200", "steps: 200, stop_at: 100"))
    said = "after step 100 of 200, as loop.stop_at says; a larger one, or 0, continues"
    assert training_ending(early) == Ending("stopped", said)

    log = StageLog(tmp_path)
    log.note("tokenizer", 10.0, 1.0, done=True)
    assert pipeline_ending(tmp_path).state == "finished"
    log.note("report", 1.0, 1.0, done=False)
    assert pipeline_ending(tmp_path).state == "finished", "the report is written by its own stage"
    log.note("gpt", 10.0, 1.0, done=False)
    assert "stage gpt is not finished" in pipeline_ending(tmp_path).text


def test_a_run_that_goes_on_is_said_to(tmp_path, monkeypatch):
    """Another process holds its folder."""
    folder = trained(tmp_path / "run", steps=100)
    monkeypatch.setattr("engine.folder_lock.fcntl.lockf", lambda *a: (_ for _ in ()).throw(OSError(38, "no locks")))
    lock = lock_folder(folder)
    assert training_ending(folder).state == "running"
    lock.release()
    assert training_ending(folder).state == "unfinished"


def test_durations_are_said_as_people_say_them():
    assert [duration_text(s) for s in (42, 720, 12000, 200000)] == ["42 s", "12 min", "3 h 20 min", "2 days, 7:33:20"]


# ------------------------------------------------------------------------------------------------ size
def test_a_page_that_is_too_large_gets_smaller_pictures_and_says_so():
    """First JPEG, then smaller sides, then without the largest; a page that fits stays as it is."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64), dtype=np.uint8)
    text = f"<p>text</p>{NOTE_PLACE}{picture(noise)}{picture(noise[:, :8, :8])}"
    assert fit_pictures(text) == text.replace(NOTE_PLACE, "")
    small = fit_pictures(text, limit=7_000)
    assert len(small) <= 7_000 and "image/jpeg" in small and "stored as JPEG at" in small and "left out" not in small
    tiny = fit_pictures(text, limit=1_900)
    assert len(tiny) <= 1_900 and "1 of them are left out" in tiny and "<p>text</p>" in tiny


def test_a_long_line_is_thinned_without_losing_its_spikes():
    points = [(step, 100.0 if step == 7_777 else float(step % 5)) for step in range(10_000)]
    thin = thinned(points, 100)
    assert len(thin) <= 100 and (7_777, 100.0) in thin and thin[0] == points[0] and thin[-1] == points[-1]
    assert [x for x, _ in thin] == sorted(x for x, _ in thin) and thinned(points[:50], 100) == points[:50]


# ------------------------------------------------------------------------------------------------ numbers and names
def test_numbers_of_a_column_have_equally_many_decimals():
    assert fixed_texts([13.25, 11.5]) == ["13.25", "11.50"] and fixed_texts([0.323, 0.3577]) == ["0.3230", "0.3577"]
    assert fixed_texts([2.5]) == ["2.5"] and fixed_texts([19.5, 8.5]) == ["19.5", "8.5"]
    assert fixed_texts([1e9, 0.25]) == ["1e+09", "0.25"] and fixed_texts([]) == []
    assert [setting_text(value) for value in (0.002, 0.01, 256.0, 3, True)] == ["2e-3", "0.01", "256", "3", "true"]


def test_runs_of_a_sweep_are_called_by_what_differs():
    """A key that all have in common is left out; runs that values do not tell apart keep their names."""
    runs = {"x": {"optim.lr": 0.002, "k": 1.0}, "y": {"optim.lr": 0.01, "k": 1.0}}
    sweep = {"runs": {name: {"values": values} for name, values in runs.items()}}
    assert short_labels(sweep) == {"x": "lr 2e-3", "y": "lr 0.01"}
    sweep["runs"]["z"] = {"values": runs["x"]}
    assert short_labels(sweep) == {"x": "x", "y": "lr 0.01", "z": "z"}
    assert short_labels({}) == {}


def test_a_range_leaves_out_few_points_or_none():
    values = [20 + i / 100 for i in range(30)]
    low, high = central_range([-50.0, *values])
    assert 19.9 <= low <= 20.02 and 20.27 <= high <= 20.29
    assert central_range(values) is None and central_range([0.0, 100.0]) is None and central_range([1.0] * 20) is None
