"""What a reader of a report sees and can do, in a browser; how a run ended; the size of a page."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from engine.folder_lock import lock_folder
from engine.messages import UserError
from engine.pipeline import StageLog
from evaluations.report.charts import thinned
from evaluations.report.ending import Ending, duration_text, pipeline_ending, training_ending
from evaluations.report.first_screen import command_text
from evaluations.report.page import picture
from evaluations.report.size import NOTE_PLACE, fit_pictures
from evaluations.report.write import write_report
from evaluations.results import write_result

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
    assert "tokenizer: hybrid, folder" in seen and "finished all 200 steps are done" in seen and "took\n3 min" in seen
    card = page.locator(".card", has_text="PSNR, dB")
    assert "19.5" in card.inner_text() and "held-out pixels" in card.inner_text()
    assert card.bounding_box()["y"] < 700
    page.click("summary >> text=command")
    assert page.inner_text("details[open] pre") == "python -m tokenizer.train --config a.yaml"
    assert "/home/x" not in page.content()


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
    """The pointer shows the record that is nearest; a click into the legend hides a line."""
    page = open_page(write_report([trained(tmp_path / "run")]))
    chart = page.locator("figure.chart", has_text="Validation PSNR")
    assert [text.text_content() for text in chart.locator("text.axis").all()] == ["step", "dB"]
    chart.scroll_into_view_if_needed()
    area = chart.locator("svg").bounding_box()
    page.mouse.move(area["x"] + area["width"] * 0.97, area["y"] + area["height"] / 2)
    assert chart.locator(".values").inner_text().split() == ["step", "200", "weights", "19.5"]
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
    """Numbers as numbers, runs without a value last, the best of a column marked, failed runs named."""
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

    assert sorted(column("PSNR, dB")) == ["", "19.5", "21.5", "8.5"]
    page.click("th >> text=PSNR")
    assert column("PSNR, dB") == ["8.5", "19.5", "21.5", ""] and column("run") == [HOSTILE, "a", "b", "d"]
    page.click("th >> text=PSNR")
    assert column("PSNR, dB") == ["21.5", "19.5", "8.5", ""]
    assert page.locator("td.best").first.inner_text() == "21.5"
    assert "d: exit code 2" in page.inner_text(".note") and column("state")[-1] == "failed"
    assert "run b, lr 0.01" in page.inner_text(".card >> nth=0")


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


@pytest.mark.parametrize("old_title", ["run", None])
def test_a_later_page_takes_the_place_of_an_earlier_one(tmp_path, old_title):
    """Also where its title says something else by now, and for pages of older versions, known by their title alone."""
    run = trained(tmp_path / "run")
    path = write_report([run])
    text = path.read_text()
    assert "<title>run: training of a tokenizer, begun 1970-01-01</title>" in text
    assert "<h1>run: training of a tokenizer, begun 1970-01-01</h1>" in text
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
    log.note("tokenizer", 10.0, done=True)
    assert pipeline_ending(tmp_path).state == "finished"
    log.note("gpt", 10.0, done=False)
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
