"""Training with the head of masked bits: exact resume, micro-batches and processes, and the stamped likelihood."""

import numpy as np
import pytest
import torch
from generator_runs import ALONE, Runs, codes_below

from autoregressive import load_gpt
from autoregressive.codes import CodeStore
from engine.data.samples import fixed_choice
from engine.messages import UserError
from engine.run_log import read_metrics
from evaluations.jobs.val_loss import held_out_losses

SECTION = (
    "model.gpt={width: 16, layers: 1, heads: 2, head: masked_bits, head_layers: 1, bits: {full_mask_share: 0.2}, "
    "token_dropout: 0.0, residual_dropout: 0.0}"
)
RUNS = Runs((SECTION, "loop={steps: 4, save_every: 2, eval_every: 2}", "optim={lr: 1e-2, eps: 1e-3}"))


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return codes_below(tmp_path_factory.mktemp("codes"))


@pytest.fixture(scope="module")
def whole(codes, tmp_path_factory):
    return RUNS.train(ALONE, tmp_path_factory.mktemp("whole") / "run", codes)


def test_micro_batches_and_processes_change_nothing(whole, codes, tmp_path):
    RUNS.require_parts_change_nothing(whole, codes, tmp_path, "loop.strategy=fsdp")


def test_a_run_that_goes_on_has_the_same_bits(whole, codes, tmp_path):
    RUNS.require_the_same_bits_without_the_last(whole, codes, tmp_path / "run")


def test_the_loss_of_a_training_is_the_exact_one_and_says_so(whole, codes):
    recorded = [record["val/loss"] for record in read_metrics(whole) if "val/loss" in record][-1]
    generator = load_gpt(whole, weights="model")
    store = CodeStore(codes[0], "val")
    tokens, labels = store.read(np.arange(len(store)))
    with torch.no_grad():
        losses = held_out_losses(generator, labels, tokens)
    assert recorded == pytest.approx(losses[fixed_choice(len(store), 4)].mean().item(), rel=1e-5)
    assert generator.held_out_facts["likelihood"].startswith("chain rule")


def test_an_export_of_a_step_is_refused(whole):
    from autoregressive.exporting.generator_parts import StepPart

    with pytest.raises(
        UserError, match=r"\(GPT\) has none: no part of it can be exported; --part encode and --part decode"
    ):
        StepPart(load_gpt(whole, weights="model"))
