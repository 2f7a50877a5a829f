"""The published files of WeTok: raw and averaged weights, the generative decoder, GPTs that carry their tokenizer."""

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

import autoregressive.convert
import tokenizer.convert
from autoregressive import load_gpt
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.registry import GeneratorConfig
from autoregressive.published import layout_rules as gpt_rules
from engine.checkpoint.manifest import CheckpointError
from engine.config import save_config
from engine.messages import ConfigError
from tokenizer import load_tokenizer
from tokenizer.loading import TokenizerSections
from tokenizer.models.cnn import CNNConfig
from tokenizer.models.registry import ModelConfig, QuantizerConfig, build_tokenizer
from tokenizer.models.wetok import WeTokConfig
from tokenizer.published.layout import export_state
from tokenizer.published.registry import config_of_state, layout_rules
from tokenizer.published.wetok import ema_key
from tokenizer.quantizers.gq import GQConfig

CNN = CNNConfig(
    base_channels=32, channel_multipliers=[1, 2, 3], encoder_res_blocks=2, decoder_res_blocks=2, mid_blocks=2
)


def model_config(generative: bool = False) -> ModelConfig:
    wetok = WeTokConfig(cnn=CNN, generative_decoder=generative)
    return ModelConfig(name="wetok", wetok=wetok, quantizer=QuantizerConfig(name="gq", gq=GQConfig(num_groups=2)))


def network(seed: int, generative: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    return build_tokenizer(model_config(generative), 256).eval()


def published(raw: nn.Module, averaged: nn.Module | None, frozen_encoder: bool = False) -> dict[str, Tensor]:
    """A state dict as in `WeTok.ckpt`, with losses and a discriminator."""
    rules = layout_rules(raw_config(raw))
    state = export_state(raw.state_dict(), rules)
    if averaged is not None:
        named = export_state(averaged.state_dict(), rules)
        state |= {ema_key(k): v for k, v in named.items() if not (frozen_encoder and k.startswith("encoder"))}
        state |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1, dtype=torch.int32)}
        state["model_ema.lossdiscriminatormain0weight"] = torch.ones(3)
    state |= {
        "loss.discriminator.main.0.weight": torch.ones(3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(2),
    }
    return state


def raw_config(net: nn.Module) -> ModelConfig:
    return model_config(net.config.generative_decoder)


def write(path, state, key: str | None = "state_dict"):
    torch.save({key: state, "epoch": 3} if key else state, path)
    return path


def same(actual: nn.Module, expected: nn.Module, prefix: str = "") -> bool:
    ours, theirs = actual.state_dict(), expected.state_dict()
    return all(torch.equal(v, ours[k]) for k, v in theirs.items() if k.startswith(prefix) and "recent" not in k)


@pytest.mark.parametrize("generative", [False, True])
@pytest.mark.parametrize("key", ["state_dict", None])
def test_a_published_file_shows_its_architecture_and_both_sets_of_weights(generative, key, tmp_path):
    """Without any YAML: widths, depths, groups and the generative decoder are read from shapes; averages by default."""
    raw, averaged = network(0, generative), network(1, generative)
    path = write(tmp_path / "WeTok.ckpt", published(raw, averaged), key)
    for weights, expected, picked in (("auto", averaged, "ema"), ("ema", averaged, "ema"), ("model", raw, "model")):
        loaded = load_tokenizer(path, weights=weights)
        assert same(loaded, expected) and loaded.provenance.weights == picked
        assert loaded.provenance.config.model == model_config(generative)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(x).reconstructions, raw(x).reconstructions)


def test_a_stage_2_file_without_an_averaged_encoder_takes_the_raw_one_and_says_so(tmp_path, caplog):
    """As its trainer leaves it: the averages are those of the decoder; encoder and averages make one network."""
    raw, averaged = network(0, True), network(1, True)
    path = write(tmp_path / "stage2.ckpt", published(raw, averaged, frozen_encoder=True))
    with caplog.at_level(logging.INFO):
        loaded = load_tokenizer(path)
    assert same(loaded, averaged, "decoder.") and same(loaded, raw, "encoder.")
    told = [r.getMessage() for r in caplog.records if "have no EMA" in r.getMessage()]
    assert len(told) == 1 and "(encoder)" in told[0] and "raw weights are taken" in told[0]


def test_a_file_without_averages(tmp_path):
    path = write(tmp_path / "WeTok.ckpt", published(network(0), None))
    assert load_tokenizer(path).provenance.weights == "model"
    with pytest.raises(CheckpointError, match="has no EMA weights"):
        load_tokenizer(path, weights="ema")


def test_the_yaml_wins_where_one_is_given_and_must_fit(tmp_path):
    save_config(TokenizerSections(model=model_config()), tmp_path / "fits.yaml")
    other = copy.deepcopy(model_config())
    other.wetok.cnn.base_channels = 64
    save_config(TokenizerSections(model=other), tmp_path / "other.yaml")
    path = write(tmp_path / "WeTok.ckpt", published(network(0, True), network(1, True)))
    loaded = load_tokenizer(path, config=tmp_path / "fits.yaml")
    assert loaded.config.generative_decoder, "seen from the width of the first convolution"
    with pytest.raises(CheckpointError, match="shape of encoder"):
        load_tokenizer(path, config=tmp_path / "other.yaml")


@pytest.mark.parametrize("change", ["missing", "unexpected", "unexpected average"])
def test_loading_is_strict(change, tmp_path):
    state = published(network(0), network(1))
    if change == "missing":
        del state["decoder.up.1.block.0.conv1.weight"], state[ema_key("decoder.up.1.block.0.conv1.weight")]
    else:
        state["decoder.extra.weight" if change == "unexpected" else "model_ema.decoderextraweight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=change.split()[0]):
        load_tokenizer(write(tmp_path / "WeTok.ckpt", state))


def test_another_file_still_needs_its_yaml(tmp_path):
    with pytest.raises(ConfigError, match="name the YAML of its architecture"):
        load_tokenizer(write(tmp_path / "VQ.pt", {"encoder.conv_in.weight": torch.ones(1)}, "model"))
    assert config_of_state({}) is None


def gpt(seed: int = 0) -> tuple[GPT, GeneratorConfig]:
    torch.manual_seed(seed)
    config = GPTConfig(
        width=16, layers=1, heads=2, codebook_sizes=[256, 256], num_tokens=16, num_classes=3, positions="rope2d"
    )
    net = GPT(config)
    for output in net.head.outputs:
        nn.init.normal_(output.weight)
    return net.eval(), GeneratorConfig(gpt=config)


def test_the_file_of_a_gpt_carries_its_tokenizer(tmp_path):
    """One file gives both: the GPT, and the raw tokenizer that it was trained with."""
    net, config = gpt()
    raw = network(0)
    state = {f"transformer.{k}": v for k, v in export_state(net.state_dict(), gpt_rules(config.gpt)).items()}
    assert {"transformer.pre_emb.weight", "transformer.post_emb.weight"} <= state.keys()  # of a token of two indices
    state |= {
        f"first_stage_model.{k}": v for k, v in export_state(raw.state_dict(), layout_rules(model_config())).items()
    }
    path = write(tmp_path / "ar.ckpt", state)
    loaded = load_gpt(path, config=config)
    for weights in ("ema", "model"):  # which speak of the tokenizer beside it: a GPT's file has no averages
        assert same(load_gpt(path, config=config, weights=weights), net)
    labels, tokens = torch.tensor([0, 1]), torch.randint(0, 256, (2, 16, 2))
    torch.testing.assert_close(loaded(labels, tokens), net(labels, tokens))
    assert same(load_tokenizer(path), raw)
    state["transformer.extra.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"unexpected: transformer\.extra\.weight"):
        load_gpt(write(tmp_path / "more.ckpt", state), config=config)
    alone = {k: v for k, v in state.items() if k.startswith("transformer.")}
    with pytest.raises(ConfigError, match="holds a GPT, not a tokenizer"):
        load_tokenizer(write(tmp_path / "alone.ckpt", alone))
    with pytest.raises(ConfigError, match="holds no GPT"):
        load_gpt(write(tmp_path / "tok.ckpt", published(raw, None)), config=config)


# ---------------------------------------------------------------------------------------------- converters
@pytest.mark.parametrize("generative", [False, True])
def test_tokenizer_conversion_both_ways(generative, tmp_path, entry):
    """Published file -> folder -> file, with both sets of weights all the way; training goes on from the raw ones."""
    raw, averaged = network(0, generative), network(1, generative)
    path = write(tmp_path / "WeTok.ckpt", published(raw, averaged))
    run = lambda *a: entry(tokenizer.convert.main, *a)  # noqa: E731
    code, _, err = run("--vq-ckpt", path, "--output", tmp_path / "folder")
    assert code == 0, err
    assert same(load_tokenizer(tmp_path / "folder"), averaged)
    assert same(load_tokenizer(tmp_path / "folder", weights="model"), raw)
    code, _, err = run("--vq-ckpt", tmp_path / "folder", "--output", tmp_path / "back.ckpt")
    assert code == 0, err
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    wanted = {k: v for k, v in published(raw, averaged).items() if "loss" not in k}
    wanted = {k: v for k, v in wanted.items() if k not in ("model_ema.decay", "model_ema.num_updates")}
    assert back.keys() == wanted.keys() and all(torch.equal(v, back[k]) for k, v in wanted.items())


def test_gpt_conversion_both_ways(tmp_path, entry):
    from autoregressive.loading import GeneratorSections

    net, config = gpt()
    save_config(GeneratorSections(model=config), tmp_path / "gpt.yaml")
    exported = export_state(net.state_dict(), gpt_rules(config.gpt))
    path = write(tmp_path / "ar.ckpt", {f"transformer.{k}": v for k, v in exported.items()})
    run = lambda *a: entry(autoregressive.convert.main, *a)  # noqa: E731
    code, _, err = run("--gpt-ckpt", path, "--gpt-config", tmp_path / "gpt.yaml", "--output", tmp_path / "folder")
    assert code == 0, err
    code, _, err = run("--gpt-ckpt", tmp_path / "folder", "--output", tmp_path / "back.ckpt")
    assert code == 0, err
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert back.keys() == {f"transformer.{k}" for k in exported}
    assert all(torch.equal(back[f"transformer.{k}"], v) for k, v in exported.items())
