"""The flag --order: the cells in their order, what a result says of it, and what is refused."""

import argparse

import mini
import pytest
import torch
from small_networks import generator as small_generator

import autoregressive.sample
from autoregressive import generate, load_gpt
from autoregressive.cli import add_sampler_flags, settings_of
from autoregressive.drawing_order import cells_in_order
from autoregressive.image_sampler import SamplerSettings
from autoregressive.models.registry import build_generator
from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config
from engine.data.images import image_tensor, read_image
from engine.messages import ConfigError
from evaluations.sample_stream import SampleStream
from tokenizer import load_tokenizer


def settings_from(*flags: str) -> SamplerSettings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_sampler_flags(parser)
    return settings_of(parser.parse_args([*flags, "--cfg-scale", "1.5"]))


@pytest.fixture(scope="module")
def pair(networks, tmp_path_factory):
    """A generator of any order, all of whose parameters matter, and the tokenizer of its 8 tokens."""
    sizes = "{width: 16, layers: 1, heads: 2, mlp_width: 32, vocab_size: 32, num_tokens: 8, num_classes: 4}"
    config = load_config(GPTTrainConfig, overrides=["model.name=rar", f"model.rar={sizes}"])
    torch.manual_seed(0)
    network = build_generator(config.model)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    folder = mini.export(tmp_path_factory.mktemp("order") / "gpt", config, network)
    return load_gpt(folder), load_tokenizer(networks / "tokenizer"), folder


def test_a_name_and_a_list_say_the_same_cells():
    assert cells_in_order("raster", 4, 0) == (0, 1, 2, 3)
    assert settings_from("--order", "3,2,1,0").order == cells_in_order("reversed", 4, 0) == (3, 2, 1, 0)
    one, same, other = (cells_in_order("random", 64, seed) for seed in (5, 5, 2**32 + 5))
    assert one == same != other and sorted(one) == list(range(64))


def test_pictures_are_drawn_in_the_order_that_is_asked_for(pair, networks, tmp_path, entry):
    """The command draws the tokens of `generate` with these cells: a sample depends on nothing but seed and order."""
    gpt, tokenizer, folder = pair
    flags = ["--vq-ckpt", networks / "tokenizer", "--gpt-ckpt", folder, "--qual-num", 2, "--class-idx", "1"]
    for order in ("reversed", "random", "2,0,1,3,7,6,5,4"):
        out = tmp_path / order
        code, _, err = entry(autoregressive.sample.main, *flags, "--order", order, "--sample-dir", out)
        assert code == 0, err
        files = sorted(out.rglob("0*.png"))
        pictures = torch.stack([image_tensor(read_image(file)) for file in files])
        cells = cells_in_order(settings_from("--order", order).order, 8, 0)
        ids = [autoregressive.sample.SAMPLES_PER_CLASS, autoregressive.sample.SAMPLES_PER_CLASS + 1]
        tokens = generate(gpt, [1, 1], guidance_scale=2.0, seed=0, sample_ids=ids, order=cells)
        assert torch.equal(pictures, tokenizer.detokenize(tokens, output="uint8"))
    code, _, err = entry(autoregressive.sample.main, *flags, "--order", "reversed", "--sample-dir", tmp_path / "random")
    assert code == 2 and "order" in err  # a folder of other settings


def test_results_say_the_order(pair, world):
    """Those in raster are results without the flag; a masked generator does not draw in raster by itself."""
    gpt, tokenizer, _ = pair
    for flags, expected in (
        ([], None), (["--order", "raster"], None), (["--order", "0,1,2,3,4,5,6,7"], None),
        (["--order", "random"], "random"), (["--order", "7,6,5,4,3,2,1,0"], (7, 6, 5, 4, 3, 2, 1, 0)),
    ):  # fmt: skip
        settings = settings_from(*flags).fitted_to(gpt, tokenizer)
        stream = SampleStream(gpt, tokenizer, settings, torch.tensor([0, 1]), "balanced", 2, 16, world)
        sampler = stream.protocol(None)["sampler"]
        assert sampler.get("order") == expected and ("order" in sampler) == (expected is not None)
        assert ("order" in settings.in_words()) == (expected is not None)
    _, masked = small_generator("masked")
    settings = settings_from("--order", "raster").fitted_to(masked, tokenizer)
    assert settings.facts()["order"] == "raster" and settings.cells(masked).tolist() == [0, 1, 2, 3]
    assert "passes" not in settings.facts()


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        (["--order", "reversed"], "plain", "--order is for a generator that was trained for any order"),
        (["--order", "reversed"], "masked bits", "this one draws in one order only"),
        (["--order", "1,0"], "any order", r"--order names 2 cells, but an image has 4: 0\.\.3"),
        (["--order", "reversed", "--num-tokens", "2"], "any order", "give --num-tokens or --order, not both"),
        (["--order", "reversed", "--passes", "2"], "masked", "give --order or --passes"),
    ],
)
def test_orders_that_do_not_fit_are_refused(flags, kind, message):
    with pytest.raises(ConfigError, match=message):
        settings_from(*flags).fitted_to(small_generator(kind)[1].eval(), None)


@pytest.mark.parametrize(
    ("order", "message"),
    [("spiral", "must be raster, reversed, random, or all cells"), ("1,x", "such as 3,2,1,0"), ("0,0", "each cell")],
)
def test_orders_that_cannot_be_are_named_with_what_is_accepted(order, message):
    with pytest.raises((argparse.ArgumentError, ConfigError), match=message):
        settings_from("--order", order)
