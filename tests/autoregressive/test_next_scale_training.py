"""Training of the generator of scales: processes, micro-batches and stops change nothing; the tokenizer gives codes."""

import pytest
import tiny
import torch
from generator_runs import ALONE, Runs, codes_below, weights

from engine.run_log import read_metrics
from evaluations.probes.features import NetworkConfig, ProbedNetwork
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
RUNS = Runs((SECTION, "loop={steps: 6, save_every: 3, eval_every: 3}", "optim={lr: 1e-2, eps: 1e-3}"))


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    return codes_below(tmp_path_factory.mktemp("codes"), TOKENIZER, num_tokens=21)


@pytest.fixture(scope="module")
def whole(codes, tmp_path_factory):
    return RUNS.train(ALONE, tmp_path_factory.mktemp("whole") / "run", codes)


def test_a_run_keeps_the_codes_of_its_tokenizer(whole, codes):
    """They are taken over before the first step, are left as they are, and lie in the run: it samples by itself."""
    state = weights(whole)
    assert state["has_codes"] == 1
    for name, tensor in load_tokenizer(codes[1]).quantizer.state_dict().items():
        assert f"scale_codes.{name}" not in state or torch.equal(state[f"scale_codes.{name}"], tensor), name
    assert {"scale_codes.codebook", "scale_codes.phis.0.weight"} <= state.keys()
    losses = [record["loss"] for record in read_metrics(whole) if "loss" in record]
    assert losses[-1] < losses[0]


def test_a_probe_of_random_weights_has_the_codes_of_the_tokenizer(whole, codes):
    """Only what was learned on codes is redrawn: without code vectors there would be no inputs."""
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    features = {}
    for is_random in (False, True):
        config = NetworkConfig(tokenizer=str(codes[1]), gpt=str(whole), random_weights=is_random)
        network = ProbedNetwork(config, 0, "fp32", torch.device("cpu"))
        features[is_random] = network(images)
        assert network.provenance["gpt"]["weights"] == ("random" if is_random else "model")
    assert features[True].shape == (2, 16) and not torch.equal(features[True], features[False])


def test_micro_batches_and_processes_change_nothing(whole, codes, tmp_path):
    RUNS.require_parts_change_nothing(whole, codes, tmp_path)


def test_a_run_that_goes_on_has_the_same_bits(whole, codes, tmp_path):
    """Also with branches that are dropped: which ones are, depends on seed and step."""
    RUNS.require_the_same_bits_without_the_last(whole, codes, tmp_path / "plain")
    dropped = SECTION.replace("drop_path: 0", "drop_path: 0.5")
    source = RUNS.train(ALONE, tmp_path / "source", codes, dropped)
    RUNS.require_the_same_bits_without_the_last(source, codes, tmp_path / "dropped", dropped)
