"""The codes say how many codes, tokens and classes there are; a config of a GPT need not repeat it."""

import json
from dataclasses import replace

import mini
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from autoregressive import load_gpt
from autoregressive import train as gpt_train
from autoregressive.codes import CodeStore
from autoregressive.models.base import DataSizes, Generator
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.training.sizes import with_sizes_of
from engine.messages import ConfigError
from tokenizer import load_tokenizer

OPEN = ("vocab_size", "num_tokens", "num_classes")


@pytest.fixture(scope="module")
def given(tmp_path_factory, image_folder):
    """A folder with a tokenizer and codes: 4 tokens of 16 codes, 2 classes."""
    root = tmp_path_factory.mktemp("given")
    config = tiny.tokenizer_config(root / "unused", image_folder)
    mini.export(root / "tokenizer", config, mini.tokenizer_of(config))
    tiny.write_codes(root / "codes", load_tokenizer(root / "tokenizer").provenance.fingerprint)
    return root


def config_of(given, run, *overrides):
    return tiny.gpt_config(run, given / "codes", given / "tokenizer", "loop.steps=2", "loop.save_every=2", *overrides)


def without_sizes(given, run, *overrides):
    return config_of(given, run, *(f"model.gpt.{key}=null" for key in OPEN), *overrides)


def test_a_config_without_sizes_trains_the_same_bits_as_one_with_them(given, tmp_path, world):
    """And records the sizes, so that its checkpoints load where the codes are not."""
    gpt_train.train(config_of(given, tmp_path / "explicit"), world)
    gpt_train.train(without_sizes(given, tmp_path / "open"), world)
    explicit, opened = (
        load_file(tmp_path / name / "checkpoints" / "step_00000002" / "model.safetensors")
        for name in ("explicit", "open")
    )
    assert explicit.keys() == opened.keys()
    assert all(torch.equal(explicit[name], opened[name]) for name in explicit)

    recorded = OmegaConf.load(tmp_path / "open" / "config.yaml").model.gpt
    assert [recorded[key] for key in OPEN] == [16, 4, 2]
    assert load_gpt(tmp_path / "open").num_classes == 2


def test_a_run_goes_on_whether_its_config_says_the_sizes_or_not(given, tmp_path, world):
    gpt_train.train(config_of(given, tmp_path / "run"), world)
    gpt_train.train(without_sizes(given, tmp_path / "run", "loop.steps=3"), world)
    assert load_gpt(tmp_path / "run").provenance.path.endswith("step_00000003")


@pytest.mark.parametrize("wrong", ["vocab_size=8", "num_tokens=9", "num_classes=3"])
def test_a_size_that_contradicts_the_codes_is_refused(given, tmp_path, world, wrong):
    with pytest.raises(ConfigError, match=rf"num_|{wrong.split('=')[0]}|codebook_sizes=\[8\]"):
        gpt_train.train(without_sizes(given, tmp_path / "run", f"model.gpt.{wrong}"), world)
    assert not (tmp_path / "run").exists()


def test_the_model_that_is_told_before_training_is_that_of_the_codes(given, tmp_path, capsys, monkeypatch):
    """--dry-run, with codes and without: a config that leaves the sizes open has those of published models then."""
    config = tmp_path / "gpt.yaml"
    config.write_text("model: {gpt: {width: 16, layers: 2, heads: 2}}\n", encoding="utf-8")
    flags = ["--config", str(config), "--dry-run", f"data.tokenizer={given / 'tokenizer'}"]
    counts = []
    for extra in ([f"data.codes={given / 'codes'}"], ["data.codes=nowhere"]):
        monkeypatch.setattr("sys.argv", ["train", *flags, *extra])
        with pytest.raises(SystemExit):
            gpt_train.main()
        counts.append(int(capsys.readouterr().out.split("generator: ")[1].split()[0].replace(",", "")))
    sizes = [{"vocab_size": 16, "num_tokens": 4, "num_classes": 2}, {}]
    networks = [GPT(GPTConfig(width=16, layers=2, heads=2, **known)) for known in sizes]
    assert counts == [sum(p.numel() for p in network.parameters()) for network in networks]


def test_tokens_of_several_indices_bring_their_codebooks():
    """A section says one codebook or several, or leaves both open."""
    sizes = DataSizes((4, 6), num_tokens=9, num_classes=3)
    left_open = GPTConfig(width=16, layers=1, heads=2).completed(sizes)
    assert (left_open.index_sizes, left_open.num_tokens, left_open.num_classes) == ((4, 6), 9, 3)
    assert GPTConfig(width=16, layers=1, heads=2, vocab_size=5).completed(sizes).index_sizes == (5,)
    with pytest.raises(ConfigError, match="num_tokens=10 must be a square number"):
        GPTConfig(width=16, layers=1, heads=2, positions="rope2d").completed(replace(sizes, num_tokens=10))


def test_codes_of_an_older_version_bring_theirs(given, tmp_path):
    """Their manifest names neither codebooks of several indices nor whether classes have names."""
    tiny.write_codes(tmp_path / "codes", "x")
    path = tmp_path / "codes" / "train" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    newer = ("codebook_sizes", "classes_are_named", "image_facts", "decoding")
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key not in newer}), encoding="utf-8")
    config = with_sizes_of(without_sizes(given, tmp_path / "run"), CodeStore(tmp_path / "codes", "train"))
    assert [getattr(config.model.gpt, key) for key in OPEN] == [16, 4, 2]


def test_a_generator_that_leaves_no_size_open_keeps_its_section():
    """The default of the contract."""

    class Plain(Generator, nn.Module):
        pass

    section = object()
    assert Plain.completed(section, DataSizes((4,), 1, 1)) is section
