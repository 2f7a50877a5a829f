"""Training of the generator of scales: processes, micro-batches and stops change nothing; the tokenizer gives codes."""

import shutil

import mini
import pytest
import tiny
import torch
from ranks import on_ranks
from torch import Tensor

from autoregressive import load_gpt
from autoregressive.train import train
from engine.run_log import read_metrics
from engine.world import World
from tokenizer.loading import load_tokenizer

TOKENIZER = f"""\
model:
  name: var_vae
  var_vae:
    z_channels: 4
    cnn: {{base_channels: 8, channel_multipliers: [1, 2], norm_groups: 4, encoder_res_blocks: 1, decoder_res_blocks: 1,
           mid_blocks: 1}}
  quantizer: {{name: multi_scale, multi_scale: {{scales: [1, 2, 4], codebook_size: 16, codebook_dim: 4}}}}
loss: {{perceptual_weight: 0.0}}
data: {{image_size: 8, global_batch_size: 4, num_workers: 0}}
validation: {{num_images: 4, batch_size: 2}}
{tiny.LOOP}"""  # 8 px images, 21 tokens of 16 codes
SIZES = "width: 16, layers: 2, heads: 2, scales: [1, 2, 4], code_dim: 4, drop_path: 0"
SECTION = f"model={{name: next_scale, next_scale: {{{SIZES}}}}}"
SETTINGS = [SECTION, "loop={steps: 6, save_every: 3, eval_every: 3}", "optim={lr: 1e-2, eps: 1e-3}"]


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """(codes, tokenizer) on the disk."""
    root = tmp_path_factory.mktemp("codes")
    config = tiny.tokenizer_config(root / "run", root, base=TOKENIZER)
    mini.export(root / "tokenizer", config, mini.tokenizer_of(config))
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint, num_tokens=21)
    return root / "codes", root / "tokenizer"


def run(world, folder, codes, *overrides):
    train(tiny.gpt_config(folder, *codes, *SETTINGS, *overrides, base=tiny.GPT_TRAINING), world)


def weights(folder) -> dict[str, Tensor]:
    return load_gpt(folder, weights="model").state_dict()


@pytest.fixture(scope="module")
def whole(codes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(World(0, 1, 0, torch.device("cpu")), folder, codes)
    return folder


def test_a_run_keeps_the_codes_of_its_tokenizer(whole, codes):
    """They are taken over before the first step, are left as they are, and lie in the run: it samples by itself."""
    state = weights(whole)
    assert state["has_codes"] == 1
    for name, tensor in load_tokenizer(codes[1]).quantizer.state_dict().items():
        assert f"scale_codes.{name}" not in state or torch.equal(state[f"scale_codes.{name}"], tensor), name
    assert {"scale_codes.codebook", "scale_codes.phis.0.weight"} <= state.keys()
    losses = [record["loss"] for record in read_metrics(whole) if "loss" in record]
    assert losses[-1] < losses[0]


def test_micro_batches_and_processes_change_nothing(whole, codes, world, tmp_path):
    run(world, tmp_path / "accumulated", codes, "loop.grad_accum=2")
    on_ranks(2, tmp_path / "a", run, tmp_path / "two", codes)
    for other in ("accumulated", "two"):
        for expected, record in zip(read_metrics(whole), read_metrics(tmp_path / other), strict=True):
            for name in (name for name in expected if "loss" in name):
                assert record[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), (other, name)
        for name, tensor in weights(tmp_path / other).items():
            torch.testing.assert_close(tensor, weights(whole)[name], rtol=1e-4, atol=1e-6)


def test_a_run_that_goes_on_has_the_same_bits(whole, codes, world, tmp_path):
    """Also with branches that are dropped: which ones are, depends on seed and step."""
    dropped = SECTION.replace("drop_path: 0", "drop_path: 0.5")
    for folder, source in (("plain", whole), ("dropped", None)):
        overrides = () if source else (dropped,)
        if source is None:
            source = tmp_path / "source"
            run(world, source, codes, *overrides)
        shutil.copytree(source, tmp_path / folder)
        shutil.rmtree(tmp_path / folder / "checkpoints" / "step_00000006")
        run(world, tmp_path / folder, codes, *overrides)
        assert all(torch.equal(tensor, weights(source)[name]) for name, tensor in weights(tmp_path / folder).items())
