"""Published checkpoint files: loaded strictly and safely, converted in both directions."""

import argparse
import logging
import os

import pytest
import torch

from autoregressive import convert as convert_gpt
from autoregressive.cli import add_gpt_flags, gpt_from
from autoregressive.loading import load_gpt
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.published import GPT_NAMES
from engine.checkpoint.foreign.reader import read_checkpoint
from engine.checkpoint.manifest import CheckpointError
from engine.config import load_config, save_config
from engine.messages import ConfigError
from tokenizer import convert, load_tokenizer
from tokenizer.cli import add_tokenizer_flags
from tokenizer.models.registry import build_tokenizer
from tokenizer.published.layout import export_state
from tokenizer.published.registry import layout_rules
from tokenizer.training.config import TokenizerTrainConfig

TINY = "configs/quickstart/tokenizer.yaml"
SMALLER = ["model.quantizer.vq={codebook_size: 16, init: random, warmup_steps: 0}", "data.root=''"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published tokenizer file with its YAML, a GPT file, and the networks that they hold."""
    folder = tmp_path_factory.mktemp("published")
    config = load_config(TokenizerTrainConfig, [TINY], [*SMALLER, "model.hybrid.semantic_layer=1"])
    save_config(config, folder / "tokenizer.yaml")
    tokenizer = build_tokenizer(config.model, 32)
    state = export_state(tokenizer.state_dict(), layout_rules(config.model))
    wrapped = {f"module.{name}": value for name, value in state.items()}
    ema = {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}
    args = argparse.Namespace(lr=1e-4, name="x")
    torch.save({"model": wrapped, "ema": ema, "steps": 7, "args": args}, folder / "both.pt")
    torch.save({"model": state, "optimizer": {}, "steps": 7, "args": args}, folder / "tokenizer.pt")
    gpt = GPT(GPTConfig(width=16, layers=1, heads=2, vocab_size=16, num_tokens=16, num_classes=10))
    torch.nn.init.normal_(gpt.output.weight)
    gpt_state = export_state(gpt.state_dict(), GPT_NAMES)
    extra = {"freqs_cis": torch.zeros(3), "layers.0.attention.kv_cache.k_cache": torch.zeros(2)}
    torch.save({**gpt_state, **extra}, folder / "gpt.pt")  # a bare state dict, as sharded training writes it
    (folder / "gpt.yaml").write_text(
        "model: {gpt: {width: 16, layers: 1, heads: 2, vocab_size: 16, num_tokens: 16, num_classes: 10}}\n"
    )
    return folder, tokenizer.eval(), gpt.eval()


def test_a_published_tokenizer_is_the_network_it_was_written_from(published):
    """Codes and images equal those of the exported network; provenance names the weights that were taken."""
    folder, tokenizer, _ = published
    loaded = load_tokenizer(folder / "tokenizer.pt", config=folder / "tokenizer.yaml")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        codes = tokenizer.encode(images).indices
        assert torch.equal(loaded.encode(images).indices, codes)
        assert torch.equal(loaded.decode_indices(codes), tokenizer.decode_indices(codes))
    assert loaded.provenance.weights == "model" and not loaded.training


def test_ema_is_taken_first_and_wrappers_are_stripped(published):
    """`auto` reads `ema` as the published readers do; `model` can be asked for."""
    folder, tokenizer, _ = published
    averaged = load_tokenizer(folder / "both.pt", config=folder / "tokenizer.yaml")
    plain = load_tokenizer(folder / "both.pt", config=folder / "tokenizer.yaml", weights="model")
    assert averaged.provenance.weights == "ema" and plain.provenance.weights == "model"
    assert torch.equal(plain.quantizer.codebook, tokenizer.quantizer.codebook)
    assert torch.equal(averaged.quantizer.codebook, tokenizer.quantizer.codebook + 1)


def test_the_file_tells_the_width_of_its_semantic_head(published, tmp_path):
    """A YAML with another semantic_dim still loads: the head is for training only."""
    folder, _, _ = published
    config = load_config(TokenizerTrainConfig, [folder / "tokenizer.yaml"], ["model.hybrid.semantic_dim=5"])
    save_config(config, tmp_path / "other.yaml")
    loaded = load_tokenizer(folder / "tokenizer.pt", config=tmp_path / "other.yaml")
    assert loaded.query_decoder.semantic_head[-1].out_features == 768


def test_a_published_gpt_loads_bare_and_without_its_tables(published):
    """A bare state dict, with tables and caches beside the weights, gives the same logits."""
    folder, _, gpt = published
    loaded = load_gpt(folder / "gpt.pt", config=folder / "gpt.yaml")
    labels, tokens = torch.tensor([3, 10]), torch.randint(0, 16, (2, 16))
    with torch.no_grad():
        assert torch.equal(loaded(labels, tokens), gpt(labels, tokens))


def test_conversion_goes_both_ways(published, tmp_path, entry):
    """Published -> ours -> published gives every tensor back; nothing is overwritten."""
    folder, _, _ = published
    for main, flag, name in ((convert.main, "vq", "tokenizer"), (convert_gpt.main, "gpt", "gpt")):
        ours, back = tmp_path / name, tmp_path / f"{name}.pt"
        config = ["--tok-config" if flag == "vq" else "--gpt-config", folder / f"{name}.yaml"]
        first = [f"--{flag}-ckpt", folder / f"{name}.pt", *config, "--output", ours]
        assert entry(main, *first)[0] == 0
        assert entry(main, f"--{flag}-ckpt", ours, "--output", back)[0] == 0
        before = read_checkpoint(folder / f"{name}.pt").state
        after = read_checkpoint(back).state
        kept = {k: v for k, v in before.items() if k not in ("freqs_cis", "layers.0.attention.kv_cache.k_cache")}
        assert after.keys() == kept.keys() and all(torch.equal(after[k], v) for k, v in kept.items())
        code, _, err = entry(main, *first)
        assert code == 2 and "exists already" in err


def test_the_wrong_kind_of_file_is_named(published):
    folder, _, _ = published
    with pytest.raises(ConfigError, match="holds a GPT, not a tokenizer"):
        load_tokenizer(folder / "gpt.pt", config=folder / "tokenizer.yaml")
    with pytest.raises(ConfigError, match="holds no GPT"):
        load_gpt(folder / "tokenizer.pt", config=folder / "gpt.yaml")
    with pytest.raises(ConfigError, match="name the YAML"):
        load_tokenizer(folder / "tokenizer.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tokenizer(folder / "absent.pt", config=folder / "tokenizer.yaml")
    with pytest.raises(CheckpointError, match="none of the weights ema"):
        load_tokenizer(folder / "tokenizer.pt", config=folder / "tokenizer.yaml", weights="ema")


def test_a_yaml_of_another_size_is_refused_naming_tensors(published, tmp_path):
    """Nothing loads partly: the message lists what is missing or misshapen."""
    folder, _, _ = published
    config = load_config(TokenizerTrainConfig, [folder / "tokenizer.yaml"], ["model.hybrid.decoder.width=64"])
    save_config(config, tmp_path / "other.yaml")
    with pytest.raises(CheckpointError, match=r"shape of s1to2decoder\.\S+: file has"):
        load_tokenizer(folder / "tokenizer.pt", config=tmp_path / "other.yaml")


class Code:
    """Pickles as a call that would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_left_out_by_name_and_not_run(published, tmp_path, caplog):
    """The weights beside it are read: nothing in a file is ever called."""
    folder, tokenizer, _ = published
    content = torch.load(folder / "tokenizer.pt", weights_only=False)
    torch.save(content | {"args": Code(tmp_path / "ran")}, tmp_path / "evil.pt")
    with caplog.at_level(logging.INFO):
        loaded = load_tokenizer(tmp_path / "evil.pt", config=folder / "tokenizer.yaml")
    assert not (tmp_path / "ran").exists()
    assert torch.equal(loaded.quantizer.codebook, tokenizer.quantizer.codebook)
    assert "left out: optimizer (empty), steps, args, objects that are not read: posix.mkdir" in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_named(published, tmp_path, share):
    folder, _, _ = published
    content = (folder / "tokenizer.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"torn\.pt is truncated or not a PyTorch checkpoint"):
        load_tokenizer(tmp_path / "torn.pt", config=folder / "tokenizer.yaml")


def test_each_network_has_its_own_choice_of_weights(published, tmp_path):
    """--weights counts for both networks, --gpt-weights for the GPT alone."""
    folder, _, gpt = published
    state = export_state(gpt.state_dict(), GPT_NAMES)
    averaged = {name: value + 1 for name, value in state.items()}
    torch.save({"module": state, "ema": averaged}, tmp_path / "gpt")
    tokenizer = load_tokenizer(folder / "both.pt", config=folder / "tokenizer.yaml")
    parser = argparse.ArgumentParser()
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    command = ["--vq-ckpt", "unused", "--gpt-ckpt", str(tmp_path / "gpt"), "--gpt-config", str(folder / "gpt.yaml")]
    choices = {
        "model": (
            [],
            ["--weights", "model"],
            ["--weights", "ema", "--gpt-weights", "model"],
            ["--gpt-weights", "auto"],
        ),
        "ema": (["--weights", "ema"], ["--weights", "model", "--gpt-weights", "ema"]),
    }
    for kind, options in choices.items():
        for option in options:
            loaded = gpt_from(parser.parse_args([*command, *option]), tokenizer, torch.device("cpu"))
            expected = state if kind == "model" else averaged
            assert loaded.provenance.weights == kind
            assert torch.equal(loaded.output.weight, expected["output.weight"])
