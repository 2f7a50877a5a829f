"""evaluations/methods.py: systems of the quick start over several seeds, and the page that shows them."""

import json
import sys
from types import SimpleNamespace

import pytest

from engine import pipeline
from engine.atomic_file import write_atomic
from engine.messages import UserError
from evaluations import methods
from evaluations.pipelines import methods as comparison
from evaluations.pipelines.methods import Measured, compared_with, finished_runs, run_of, stages_of
from evaluations.pipelines.methods_page import page_of
from evaluations.pipelines.methods_record import RunNumbers, read_record, write_record
from evaluations.run_layout import RunLayout


@pytest.fixture(autouse=True)
def generators(monkeypatch):
    """Instead of those of the runs, which have none here."""
    monkeypatch.setattr(comparison, "load_gpt", lambda folder: SimpleNamespace(passes_per_image=16))


def finish(runs_dir, method: str, seed: int, psnr: float, nats: float = 2.0) -> None:
    """A run of the quick start with these numbers."""
    run = run_of(method, seed, runs_dir)
    layout = RunLayout(run)
    results = {
        "psnr": psnr,
        "codebook_usage": 0.5,
        "num_tokens": 16,
        "frechet_lite0": {"reconstruction": 30.0, "generated": 40.0 + seed},
        "label_agreement": 0.98,
        "cpu_seconds": {"tokenizer": 400.0 + seed, "gpt": 150.0, "report": 50.0},
    }
    layout.evaluations.mkdir(parents=True)
    layout.generator.mkdir()
    write_atomic(run / "results.json", json.dumps(results))
    reconstruction = {"metrics": {"bits_per_image": 128}, "protocol": {"kind": "reconstruction"}}
    write_atomic(layout.result("reconstruction"), json.dumps(reconstruction))
    records = [{"step": 250, "val_ema/loss": 9.0}, {"step": 500, "val_ema/loss": nats}]
    write_atomic(layout.generator / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    starts = [{"git": {"sha": sha * 40, "dirty": sha == "b"}} for sha in "ab"]
    write_atomic(layout.generator / "starts.jsonl", "".join(json.dumps(start) + "\n" for start in starts))


def page_of_folder(methods: list[str], seeds: int, runs_dir) -> str:
    """The page of the runs in a folder, with nothing on record."""
    return page_of(methods, seeds, finished_runs(methods, seeds, runs_dir, {}))


def row_of(page: str, method: str) -> list[str]:
    """The cells of the row of a method."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| [{method}]")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_runs_are_the_commands_of_the_quick_start_measured_by_one_classifier(tmp_path):
    stages = stages_of(["gigatok", "ema"], 2, tmp_path, {})
    assert [stage.name for stage in stages] == [
        "classifier", "quickstart", "quickstart-ema", "quickstart-seed1", "quickstart-ema-seed1",
    ]  # fmt: skip
    assert all(stage.command[:3] == [sys.executable, "-m", "evaluations.quickstart"] for stage in stages[1:])
    shared = ["--runs-dir", str(tmp_path), "--classifier", str(tmp_path / "classifier")]
    assert stages[2].arguments == ["--system", "ema", *shared]
    assert stages[4].arguments == ["--system", "ema", *shared, "--seed", "1"]


def test_rows_are_means_with_stds_and_tell_what_differs_beyond_chance(tmp_path):
    """PSNR of 20 +- 0.1 against 21 +- 0.1 differs, 20 +- 0.1 against 20.05 +- 0.1 does not; equal numbers never do."""
    for seed, shift in enumerate((-0.1, 0.0, 0.1)):
        finish(tmp_path, "gigatok", seed, 20.0 + shift)
        finish(tmp_path, "ema", seed, 21.0 + shift)
        finish(tmp_path, "fsq", seed, 20.05 + shift)
        finish(tmp_path, "rvq", seed, 19.0 + shift)
    page = page_of_folder(["gigatok", "ema", "fsq", "rvq"], 3, tmp_path)
    assert row_of(page, "gigatok")[1:] == [
        "3", "128", "20.00 ± 0.10", "50.0", "30.0", "41.0 ± 1.0", "98.0", "401 ± 1", "150", "10.0 ± 0.0", "",
    ]  # fmt: skip
    assert row_of(page, "ema")[3] == "21.00 ± 0.10" and row_of(page, "ema")[-1] == "better: PSNR, dB"
    assert row_of(page, "fsq")[-1] == "no difference beyond chance"
    assert row_of(page, "rvq")[-1] == "worse: PSNR, dB"
    assert f"Commits of the code, and the number of runs: `{'b' * 10} with changes` (12)." in page
    assert "Not all seeds" not in page and "Generators of the codes" not in page


def test_generators_are_compared_in_nats_per_image(tmp_path):
    """The last held-out loss per token, times 16 tokens; lower is better."""
    assert compared_with("ema") == compared_with("rar") == "gigatok" and compared_with("bar") == "wetok"
    for seed, shift in enumerate((-0.01, 0.0, 0.01)):
        finish(tmp_path, "gigatok", seed, 20.0, nats=2.0 + shift)
        finish(tmp_path, "rar", seed, 20.0, nats=1.5 + shift)
        finish(tmp_path, "wetok", seed, 20.0, nats=4.0 + shift)
        finish(tmp_path, "bar", seed, 20.0, nats=5.0 + shift)
    page = page_of_folder(["gigatok", "wetok", "rar", "bar"], 3, tmp_path)
    assert page.count("](../configs/quickstart/wetok/tokenizer.yaml)") == 2, "beside the plain one, and above its own"
    assert "against gigatok" in page and row_of(page, "bar")[-1] == "worse: held-out nats per image"
    row = row_of(page, "rar")
    assert row[2] == "24.00 ± 0.16" and row[5] == "16" and row[-1] == "better: held-out nats per image"


@pytest.mark.filterwarnings("error")
def test_numbers_without_spread_are_judged_in_silence(tmp_path):
    """As 100 % in all seeds, on one side or on both."""
    for seed, shift in enumerate((-0.1, 0.0, 0.1)):
        finish(tmp_path, "gigatok", seed, 20.0)
        finish(tmp_path, "ema", seed, 21.0)
        finish(tmp_path, "fsq", seed, 20.05 + shift)
    page = page_of_folder(["gigatok", "ema", "fsq"], 3, tmp_path)
    assert row_of(page, "ema")[-1] == "better: PSNR, dB"
    assert row_of(page, "fsq")[-1] == "no difference beyond chance"


def test_a_number_that_a_run_lacks_is_told(tmp_path):
    """As the held-out loss of a generator that diverged."""
    finish(tmp_path, "gigatok", 0, 20.0)
    finish(tmp_path, "rar", 0, 20.0, nats=1.5)
    finish(tmp_path, "rar", 1, 20.0, nats=float("nan"))
    assert row_of(page_of_folder(["gigatok", "rar"], 2, tmp_path), "rar")[2] == "24.00 (1 of 2 runs)"


def test_a_page_of_unfinished_runs_says_what_is_missing(tmp_path):
    """One run has no std, and nothing is compared."""
    finish(tmp_path, "gigatok", 0, 20.0)
    finish(tmp_path, "ema", 0, 25.0)
    page = page_of_folder(["gigatok", "ema", "fsq"], 3, tmp_path)
    assert row_of(page, "ema")[3] == "25.00" and row_of(page, "ema")[-1] == "one seed: not judged"
    assert "Not all seeds have ended: gigatok (1 of 3), ema (1 of 3), fsq (0 of 3)." in page
    assert Measured.among({}, "fsq", 3).runs == {}


def test_runs_on_record_are_shown_and_not_repeated(tmp_path):
    """Seeds 0 and 1 ran elsewhere, seed 2 here; a run that is in both counts as it is here."""
    elsewhere, here, record = tmp_path / "elsewhere", tmp_path / "here", tmp_path / "methods.json"
    methods = ["gigatok", "ema"]
    for seed in (0, 1):
        finish(elsewhere, "gigatok", seed, 20.0 + seed)
    write_record(record, finished_runs(methods, 3, elsewhere, read_record(record)))
    recorded = read_record(record)
    assert recorded == finished_runs(methods, 3, elsewhere, {}) and list(recorded["gigatok"]) == [0, 1]

    names = [stage.name for stage in stages_of(methods, 3, here, recorded)]
    assert names == ["classifier", "quickstart-ema", "quickstart-ema-seed1", "quickstart-seed2", "quickstart-ema-seed2"]
    assert stages_of(["gigatok"], 2, here, recorded) == [], "nothing is left for a classifier to measure"

    finish(here, "gigatok", 2, 22.0)
    finish(here, "gigatok", 0, 20.3)
    page = page_of(methods, 3, finished_runs(methods, 3, here, recorded))
    assert "Not all seeds have ended: ema (0 of 3)." in page
    values = Measured.among(finished_runs(methods, 3, here, recorded), "gigatok", 3).values["psnr"]
    assert values == [20.3, 21.0, 22.0]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"ema": {"x": {"commit": "", "numbers": {}}}}',
        '{"ema": {"0": {"numbers": {}}}}',
        '{"ema": {"0": {"commit": "", "numbers": {"psnr": "1"}}}}',
    ],
)
def test_another_file_beside_the_page_is_refused(tmp_path, text):
    (tmp_path / "methods.json").write_text(text)
    with pytest.raises(UserError, match=r"methods\.json is no record of runs .*another --page"):
        read_record(tmp_path / "methods.json")


def test_numbers_that_no_run_has_are_not_on_record(tmp_path):
    write_record(tmp_path / "methods.json", {"ema": {1: RunNumbers({"psnr": 20.5}, "unknown")}})
    assert json.loads((tmp_path / "methods.json").read_text()) == {
        "ema": {"1": {"commit": "unknown", "numbers": {"psnr": 20.5}}}
    }


def test_the_page_is_written_after_each_run(tmp_path, monkeypatch, capsys):
    """From its flags to the page; a run that is done is not run again."""
    ran = []

    def in_this_process(stage, log):
        ran.append(stage.name)
        if stage.name != "classifier":
            method = stage.arguments[stage.arguments.index("--system") + 1]
            seed = int(stage.arguments[stage.arguments.index("--seed") + 1]) if "--seed" in stage.arguments else 0
            finish(tmp_path / "runs", method, seed, 20.0 + seed)
        log.note(stage.name, 1.0, 1.0, done=True)

    monkeypatch.setattr(pipeline, "_run", in_this_process)
    monkeypatch.setattr(methods, "needs", lambda args, stages, preflight: None)  # there is no classifier
    flags = ["--runs-dir", str(tmp_path / "runs"), "--systems", "ema"]
    for seeds, expected in (("1", 3), ("2", 5)):
        monkeypatch.setattr(sys, "argv", ["methods", *flags, "--seeds", seeds])
        methods.main()
        assert len(ran) == expected
        assert row_of((tmp_path / "runs" / "methods.md").read_text(), "ema")[1] == seeds
        assert list(read_record(tmp_path / "runs" / "methods.json")["ema"]) == list(range(int(seeds)))
    monkeypatch.setattr(sys, "argv", ["methods", *flags, "--seeds", "2", "--dry-run"])
    methods.main()
    printed = capsys.readouterr().out
    assert printed.count("done  ") == 4 and "done   ema, seed 1: its numbers are in" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--systems", "bsq"], "invalid choice"), (["--seeds", "0"], "seeds"), (["--page", "a.json"], "another ending")],
)
def test_wrong_flags_are_refused(monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["methods", *flags])
    with pytest.raises(SystemExit) as stop:
        methods.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
