"""Published tokenizers of other groups that our networks express: Open-MAGVIT2 (LFQ) and IBQ; and files of trainers."""

import logging

import pytest
import torch

import tokenizer.convert
from engine.checkpoint.manifest import CheckpointError
from engine.config import save_config
from engine.messages import ConfigError
from tokenizer import load_tokenizer
from tokenizer.loading import TokenizerSections
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.llamagen import LlamaGenConfig
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.models.wetok import WeTokConfig
from tokenizer.published.layout import export_state
from tokenizer.published.merged import ema_key
from tokenizer.published.registry import layout_rules
from tokenizer.quantizers.gq import GQConfig
from tokenizer.quantizers.ibq import IBQConfig


def magvit2(bits: int = 18, **cnn) -> ModelConfig:
    """Open-MAGVIT2: WeTok's CNN with one group of bits."""
    sizes = {"encoder_res_blocks": 4, "decoder_res_blocks": 4, "mid_blocks": 4} | cnn
    quantizer = QuantizerConfig(name="gq", gq=GQConfig(num_groups=1, group_dim=bits))
    return ModelConfig(name="wetok", wetok=WeTokConfig(cnn=CNNConfig(**sizes)), quantizer=quantizer)


def ibq(codes: int = 16384, codebook_dim: int = 256, **cnn) -> ModelConfig:
    """IBQ: LlamaGen's CNN with index backpropagation."""
    sizes = {"encoder_res_blocks": 4, "decoder_res_blocks": 5} | cnn
    quantizer = QuantizerConfig(name="ibq", ibq=IBQConfig(codebook_size=codes, codebook_dim=codebook_dim))
    section = LlamaGenConfig(cnn=CNNConfig(**sizes), z_channels=codebook_dim)
    return ModelConfig(name="llamagen", llamagen=section, quantizer=quantizer)


SMALL = {"base_channels": 8, "channel_multipliers": [1, 2, 2], "norm_groups": 4}
CONFIGS = {
    "magvit2": magvit2(**SMALL | {"encoder_res_blocks": 1, "decoder_res_blocks": 1, "mid_blocks": 1}),
    "ibq": ibq(32, 8, **SMALL | {"encoder_res_blocks": 1, "decoder_res_blocks": 2}),
}


def network(config: ModelConfig, seed: int):
    torch.manual_seed(seed)
    return build_tokenizer(config, 32).eval()


def same(actual, expected) -> bool:
    ours, theirs = dict(actual.named_parameters()), dict(expected.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.fixture(params=list(CONFIGS))
def released(request, tmp_path):
    """(file with raw weights, averages, losses and a Lightning state around them; its YAML; both networks)."""
    config = CONFIGS[request.param]
    raw, averaged = network(config, 0), network(config, 1)
    rules = layout_rules(config)
    state = export_state(raw.state_dict(), rules)
    state |= {ema_key(name): value for name, value in export_state(averaged.state_dict(), rules).items()}
    state |= {
        "loss.discriminator.main.0.weight": torch.ones(3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(2),
    }
    state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(5)}
    content = {"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {}}], "pytorch-lightning_version": "1.9"}
    torch.save(content, tmp_path / "file.ckpt")
    save_config(TokenizerSections(model=config), tmp_path / "file.yaml")
    return tmp_path / "file.ckpt", tmp_path / "file.yaml", raw, averaged


def test_a_file_is_read_with_both_sets_of_weights(released):
    """The named YAML decides: 18 bits are no groups of 8, and are not asked about."""
    path, yaml, raw, averaged = released
    for weights, expected, kind in (("auto", averaged, "ema"), ("ema", averaged, "ema"), ("model", raw, "model")):
        loaded = load_tokenizer(path, config=yaml, weights=weights)
        assert same(loaded, expected) and loaded.provenance.weights == kind
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded.tokenize(images), raw.tokenize(images))
    with pytest.raises(ConfigError, match=r"name the .*YAML"):
        load_tokenizer(path)


def test_conversion_goes_both_ways(released, tmp_path, entry):
    path, yaml, raw, averaged = released
    code, _, err = entry(
        tokenizer.convert.main, "--vq-ckpt", path, "--tok-config", yaml, "--output", tmp_path / "folder"
    )
    assert code == 0, err
    assert same(load_tokenizer(tmp_path / "folder"), averaged)
    code, _, err = entry(tokenizer.convert.main, "--vq-ckpt", tmp_path / "folder", "--output", tmp_path / "back.ckpt")
    assert code == 0, err
    assert same(load_tokenizer(tmp_path / "back.ckpt", config=yaml), averaged)
    assert same(load_tokenizer(tmp_path / "back.ckpt", config=yaml, weights="model"), raw)


# ---------------------------------------------------------------------------------------------- files of trainers
def test_both_sets_of_a_file_can_be_asked_for_where_a_layout_merges_them(tmp_path):
    """A trainer that keeps averages under a key of their own: `model` is never answered with them."""
    config = CONFIGS["magvit2"]
    raw, averaged = network(config, 0), network(config, 1)
    content = {"model": export_state(raw.state_dict(), layout_rules(config))}
    content["ema"] = export_state(averaged.state_dict(), layout_rules(config))
    torch.save(content, tmp_path / "x")
    save_config(TokenizerSections(model=config), tmp_path / "x.yaml")
    for weights, expected, kind in (("auto", averaged, "ema"), ("ema", averaged, "ema"), ("model", raw, "model")):
        loaded = load_tokenizer(tmp_path / "x", config=tmp_path / "x.yaml", weights=weights)
        assert same(loaded, expected) and loaded.provenance.weights == kind


def test_half_precision_becomes_float32_and_the_log_says_what_was_left_out(released, tmp_path, caplog):
    path, yaml, raw, _ = released
    state = torch.load(path, weights_only=True)["state_dict"]
    halves = {name: value.half() for name, value in state.items() if not name.startswith(("model_ema", "loss"))}
    torch.save({"module": halves, "optimizer": {"x": 1}}, tmp_path / "half.PT")
    with caplog.at_level(logging.INFO):
        loaded = load_tokenizer(tmp_path / "half.PT", config=yaml, weights="model")
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    for ours, theirs in zip(loaded.parameters(), raw.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
    assert "took the weights 'model' (module)" in caplog.text and "left out: optimizer" in caplog.text


def test_weights_that_are_not_finite_are_refused_by_the_name_in_the_file(released, tmp_path, entry):
    """Also by the converter, which writes nothing."""
    path, yaml, _, _ = released
    state = torch.load(path, weights_only=True)["state_dict"]
    state = {f"module.{name}": value for name, value in state.items() if not name.startswith(("model_ema", "loss"))}
    state["module.decoder.conv_out.weight"][0, 0, 0, 0] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"not finite:\n  NaN: module\.decoder\.conv_out\.weight"):
        load_tokenizer(tmp_path / "bad.pt", config=yaml)
    arguments = ["--vq-ckpt", tmp_path / "bad.pt", "--tok-config", yaml, "--output", tmp_path / "folder"]
    code, _, err = entry(tokenizer.convert.main, *arguments)
    assert code == 2 and "not finite" in err and not (tmp_path / "folder").exists()
