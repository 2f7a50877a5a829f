"""The quick starts of residual and product codes on a few digits: two indices per token, from training to report."""

import json

import pytest
import torch
from test_journey import FEWER, start

from autoregressive import generate, load_gpt
from autoregressive.codes import CodeStore
from engine.run_log import read_metrics
from evaluations.results import read_result
from evaluations.run_layout import RunLayout
from tokenizer import load_tokenizer

SMALLER = {
    "tokenizer": [*FEWER["tokenizer"][:6], "loss.shortcut.end_step=4"],  # without what only others have
    "gpt": ["loop.steps=6", "loop.log_every=1", "validation.num_images=10"],
}


@pytest.mark.slow  # the journey of WeTok has several indices too, and each part of this one has a test of its own
@pytest.mark.parametrize("system", ["rvq", "mcq"])
def test_two_indices_per_token_go_all_the_way(system, tmp_path):
    """Codes and GPT have two indices of 64 codes; usage of both is in the records, the results and the report."""
    stages = []
    of_system = SMALLER["tokenizer"] + [f"model.quantizer.{system}.warmup_steps=5"]
    start(tmp_path, stages, "--system", system, fewer=FEWER | SMALLER | {"tokenizer": of_system})
    assert stages == ["tokenizer", "codes", "gpt", "classifier", "reconstruction", "generation", "report"]
    run = tmp_path / f"quickstart-{system}-short"

    tokenizer, gpt = load_tokenizer(run / "tokenizer"), load_gpt(run / "gpt")
    store = CodeStore(run / "codes", "train")
    assert store.codes.shape[2:] == (16, 2) and store.manifest.codebook_sizes == list(gpt.codebook_sizes) == [64, 64]
    tokens = generate(gpt, [0, 7], seed=1)
    assert tokens.shape == (2, 16, 2) and torch.isfinite(tokenizer.detokenize(tokens)).all()

    names = {"codebook_usage_group_0", "codebook_usage_group_1"}
    assert names <= {name for record in read_metrics(run / "tokenizer") for name in record}
    assert names <= read_result(RunLayout(run).result("reconstruction"))["metrics"].keys()
    results = json.loads((run / "results.json").read_text())
    assert 0 < results["psnr"] < 50 and results["codebook_size"] == 64
    assert "group 1" in (run / "report.html").read_text()
