"""The quick start of WeTok on a few digits: both stages, the factorised GPT, samples, metrics and report."""

import json

import pytest
from test_journey import FEWER, start

from autoregressive import load_gpt
from autoregressive.codes import CodeStore
from engine.run_log import read_metrics
from tokenizer import load_tokenizer

SMALLER = {
    "tokenizer": ["data.global_batch_size=8", "validation.num_images=10", "loop.log_every=5"],
    "gpt": ["loop.steps=6", "loop.log_every=1", "validation.num_images=10"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs, ran = tmp_path_factory.mktemp("journey"), []
    start(runs, ran, "--system", "wetok", fewer=FEWER | SMALLER)
    assert ran == ["tokenizer", "codes", "gpt", "classifier", "reconstruction", "generation", "report"]
    return runs / "quickstart-wetok-short"


def test_the_tokenizer_went_through_both_stages(run):
    """The run loads as its generative decoder; the records of both phases go on in one count, for the report."""
    tokenizer = load_tokenizer(run / "tokenizer")
    assert tokenizer.config.generative_decoder and "phase_2" in tokenizer.provenance.path
    steps = [r["step"] for r in read_metrics(run / "tokenizer") if "loss" in r]
    assert steps == sorted(steps) and steps[0] == 5 and steps[-1] == 30


def test_codes_and_gpt_have_two_indices_a_token(run):
    store, gpt = CodeStore(run / "codes", "train"), load_gpt(run / "gpt")
    assert store.codes.shape[2:] == (16, 2) and store.manifest.codebook_sizes == list(gpt.codebook_sizes) == [256, 256]


def test_results_and_report_are_there(run):
    """The same keys as the default system; the report shows the tokenizer's curves."""
    results = json.loads((run / "results.json").read_text())
    assert 0 < results["psnr"] < 50 and 0 <= results["distinct"] <= 1 and results["codebook_size"] == 256
    assert "Validation PSNR" in (run / "report.html").read_text() and (run / "samples.png").is_file()


def test_what_has_no_settings_is_refused(entry, monkeypatch, tmp_path):
    from evaluations import quickstart

    code, _, err = entry(quickstart.main, "--system", "wetok", "--runs-dir", tmp_path, "--data", "twemoji")
    assert code == 2 and "--system wetok has settings for --data mnist5k only, not for twemoji" in err
