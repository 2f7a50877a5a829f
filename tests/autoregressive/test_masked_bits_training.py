"""Training with the head of masked bits: exact resume, micro-batches and processes, and the stamped likelihood."""

import shutil

import mini
import numpy as np
import pytest
import tiny
import torch
from ranks import on_ranks

from autoregressive import load_gpt
from autoregressive.codes import CodeStore
from autoregressive.train import train
from engine.data.samples import fixed_choice
from engine.messages import UserError
from engine.run_log import read_metrics
from engine.world import World
from evaluations.jobs.val_loss import held_out_losses
from tokenizer import load_tokenizer

SECTION = (
    "model.gpt={width: 16, layers: 1, heads: 2, head: masked_bits, head_layers: 1, bits: {full_mask_share: 0.2}, "
    "token_dropout: 0.0, residual_dropout: 0.0}"
)
SETTINGS = [SECTION, "loop={steps: 4, save_every: 2, eval_every: 2}", "optim={lr: 1e-2, eps: 1e-3}"]


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """(codes, tokenizer) on the disk."""
    root = tmp_path_factory.mktemp("codes")
    tokenizer_config = tiny.tokenizer_config(root / "run", root)
    mini.export(root / "tokenizer", tokenizer_config, mini.tokenizer_of(tokenizer_config))
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    return root / "codes", root / "tokenizer"


def run(world, folder, codes, *overrides):
    train(tiny.gpt_config(folder, *codes, *SETTINGS, *overrides, base=tiny.GPT_TRAINING), world)


def weights(folder):
    return load_gpt(folder, weights="model").state_dict()


@pytest.fixture(scope="module")
def whole(codes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(World(0, 1, 0, torch.device("cpu")), folder, codes)
    return folder


def test_micro_batches_and_processes_change_nothing(whole, codes, world, tmp_path):
    run(world, tmp_path / "accumulated", codes, "loop.grad_accum=2")
    on_ranks(2, tmp_path / "a", run, tmp_path / "sharded", codes, "loop.strategy=fsdp")
    for other in ("accumulated", "sharded"):
        for expected, record in zip(read_metrics(whole), read_metrics(tmp_path / other), strict=True):
            for name in (name for name in expected if "loss" in name):
                assert record[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), (other, name)
        for name, tensor in weights(tmp_path / other).items():
            torch.testing.assert_close(tensor, weights(whole)[name], rtol=1e-4, atol=1e-6)


def test_a_run_that_goes_on_has_the_same_bits(whole, codes, world, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    run(world, tmp_path / "run", codes)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(tmp_path / "run").items())


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

    with pytest.raises(UserError, match="without a decode step that can be exported"):
        StepPart(load_gpt(whole, weights="model"))
