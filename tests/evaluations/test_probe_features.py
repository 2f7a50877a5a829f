"""Features for linear probes: those that the papers name, read once, the same for any number of ranks."""

import shutil

import mini
import numpy as np
import pytest
import torch
from probes import IMAGES, config_of, network_of, pixels
from safetensors.torch import load_file, save_file
from torch import nn

from autoregressive import load_gpt
from engine.data.images import to_float
from engine.messages import ConfigError
from evaluations.probes.cache import read_features
from evaluations.probes.features import NetworkConfig, ProbedNetwork
from tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("probe_images")


def output_of(module: nn.Module, call) -> torch.Tensor:
    """What `module` returns inside `call()`."""
    seen = []
    hook = module.register_forward_hook(lambda module, args, output: seen.append(output))
    call()
    hook.remove()
    return seen[-1]


@pytest.mark.parametrize(("layer", "read"), [(None, 1), (1, 1), (2, 2)])
def test_features_of_a_gpt_are_mean_hidden_states_of_the_null_class(probed, layer, read):
    """After layer L // 2 = 1 of 2, or the one that is named; over all positions, the class position included."""
    tokenizer, gpt, images = load_tokenizer(probed / "tokenizer"), load_gpt(probed / "gpt"), pixels("val")
    codes = tokenizer.encode(to_float(images)).indices
    hidden = output_of(gpt.layers[read - 1], lambda: gpt(torch.full((14,), 4), codes))
    network = network_of(probed, layer=layer)
    torch.testing.assert_close(network(images), hidden.mean(1))
    assert (network.dim, network.facts["layer"]) == (16, read)


@pytest.mark.parametrize("name", ["tokenizer", "2d"])
def test_features_of_a_tokenizer_are_mean_tokens(probed, name):
    """Encoder: before and after the projection. Decoder: after its semantic layer 1, or layer 2."""
    tokenizer, images = load_tokenizer(probed / name), pixels("val")
    own = {"tokenizer": str(probed / name)}

    def run():
        return tokenizer.decode_indices(tokenizer.encode(to_float(images)).indices)

    cases = [
        (tokenizer.query_encoder.ln_post, {"source": "tokenizer"}),
        (tokenizer.query_encoder.out_proj, {"source": "tokenizer", "after_projection": True}),
        (tokenizer.query_decoder.transformer[0], {"source": "decoder"}),
        (tokenizer.query_decoder.transformer[1], {"source": "decoder", "layer": 2}),
    ]
    for module, options in cases:
        found = network_of(probed, **own, **options)(images)
        torch.testing.assert_close(found, output_of(module, run).mean(1), rtol=1e-4, atol=1e-5)


def test_features_of_a_plain_cnn_are_the_mean_of_its_map(probed):
    tokenizer, images = load_tokenizer(probed / "cnn"), pixels("val")
    found = network_of(probed, tokenizer=str(probed / "cnn"), source="tokenizer")(images)
    torch.testing.assert_close(found, tokenizer.encoder(to_float(images)).mean((2, 3)))


def test_dropout_acts_only_where_it_is_asked_for_and_only_in_training(probed):
    """Two passes of training images are equal, unless `gpt_dropout` is on; held-out features never change."""
    images = pixels("val")
    expected = network_of(probed)(images)
    for dropout in (False, True):
        network = network_of(probed, gpt_dropout=dropout)
        first, second = network(images, True), network(images, True)
        assert torch.equal(first, second) != dropout
        assert torch.equal(first, expected) != dropout
        assert torch.equal(network(images), expected)


def test_the_weights_of_each_network_can_be_chosen(probed, tmp_path):
    """Of a GPT with raw weights and an EMA, and of a tokenizer that has raw weights alone."""
    folder = tmp_path / "gpt"
    shutil.copytree(probed / "gpt", folder)
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in state.items()}, folder / "ema.safetensors")
    names = {"source": "gpt", "tokenizer": str(probed / "tokenizer"), "gpt": str(folder), "weights": "model"}
    for gpt_weights, expected in (("ema", "ema"), ("", "model")):
        config = NetworkConfig(**names, gpt_weights=gpt_weights)
        network = ProbedNetwork(config, 0, "fp32", torch.device("cpu"))
        assert network.provenance["gpt"]["weights"] == expected
        assert network.provenance["tokenizer"]["weights"] == "model"
    with pytest.raises(ConfigError, match=r"network\.gpt_weights='raw' must be one of"):
        config_of(probed, "unused", "network.gpt_weights=raw")


def test_random_weights_are_drawn_with_the_seed_and_stamped(probed):
    """Only the probed network is replaced; the same seed gives the same one."""
    images, trained, again = pixels("val"), network_of(probed), network_of(probed, random_weights=True)
    drawn = network_of(probed, random_weights=True)
    assert torch.equal(drawn(images), again(images)) and not torch.equal(drawn(images), trained(images))
    assert drawn.provenance["gpt"]["weights"] == "random" and drawn.provenance["tokenizer"]["weights"] == "model"
    assert drawn.identity == again.identity and drawn.identity["gpt"] != trained.identity["gpt"]
    other = {"source": "tokenizer", "tokenizer": str(probed / "other")}
    encoder = network_of(probed, **other, random_weights=True)
    assert encoder.provenance["tokenizer"]["weights"] == "random"
    assert not torch.equal(encoder(images), network_of(probed, **other)(images))


def test_features_are_read_once_and_only_found_by_the_same_network(probed, tmp_path, world, monkeypatch):
    """Center crops and labels of all images, bitwise the same file from one rank or three; other networks read anew."""
    data = config_of(probed).data
    network = network_of(probed)
    records = read_features(network, IMAGES["train"], data, "train", tmp_path, 5, world)
    expected = torch.cat([network(chunk) for chunk in pixels("train").split(5)])
    assert np.array_equal(records["features"], expected.numpy())
    assert np.array_equal(records["label"], IMAGES["train"].labels)
    shared = tmp_path / "shared"
    shared.mkdir()
    mini.on_ranks(3, lambda w: read_features(network_of(probed), IMAGES["train"], data, "train", shared, 5, w))
    (alone,), (together,) = tmp_path.glob("*.npy"), shared.glob("*.npy")
    assert alone.read_bytes() == together.read_bytes() and alone.name == together.name
    monkeypatch.setattr(ProbedNetwork, "__call__", lambda *args: pytest.fail("read again"))
    assert np.array_equal(read_features(network, IMAGES["train"], data, "train", tmp_path, 5, world), records)
    monkeypatch.undo()
    read_features(network, IMAGES["val"], data, "val", tmp_path, 5, world)
    read_features(network_of(probed, layer=2), IMAGES["train"], data, "train", tmp_path, 5, world)
    assert len(list(tmp_path.glob("*.npy"))) == 3
