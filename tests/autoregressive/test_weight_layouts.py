"""Layouts of weights for sampling: equal products, equal tokens, and a stamp where they are other numbers."""

import argparse
import json
import logging

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import autoregressive.sample
from autoregressive import load_gpt
from autoregressive.cli import add_sampler_flags, set_sampling, settings_of
from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings
from autoregressive.models.base import Generator
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.weight_layouts import (
    PLAIN,
    WEIGHT_LAYOUTS,
    laid_out,
    quantized_int8,
    require_layout,
)
from autoregressive.sampling import greedy, seeded_draw
from autoregressive.sampling_weights import changes, fastest_layout, probe, set_weight_layout
from engine.messages import ConfigError
from evaluations.benchmarks.sampler import (
    PublishedLoop,
    compare_sequences,
    in_layout,
    our_steps,
    published_steps,
    trained_looking,
)
from evaluations.sample_stream import SampleStream
from tokenizer import load_tokenizer

EXACT = [name for name, layout in WEIGHT_LAYOUTS.items() if layout.is_exact]
ROUNDED = [name for name, layout in WEIGHT_LAYOUTS.items() if not layout.is_exact]
CONFIG = GPTConfig(width=64, layers=2, heads=2, vocab_size=256, num_tokens=16, num_classes=5)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return trained_looking(CONFIG, torch.device("cpu"))


# ---------------------------------------------------------------------------------------------- products
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (2, 1, 64), (2, 5, 64), (2, 2500), (3, 7)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", WEIGHT_LAYOUTS)
def test_products_of_a_layout(layout, bias, shape, rows):
    """Up to rounding of float32, or of the numbers that the layout holds; for any leading shape and number of inputs,
    whatever the number of rows that the weight was laid out for, with a bias or not.
    """
    torch.manual_seed(1)
    linear = nn.Linear(shape[-1], 96, bias=bias)
    x = torch.randn(shape)
    with torch.no_grad():
        expected, actual = linear(x), laid_out(linear, layout, rows)(x)
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    tolerance = 1e-5 if WEIGHT_LAYOUTS[layout].is_exact else 2e-2
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_whole_numbers_are_the_nearest():
    """Every weight within half a step of its channel, of channels of any size, and of one that is zero."""
    weight = torch.randn(6, 32) * torch.tensor([1e-6, 1e-2, 1.0, 30.0, 1e4, 0.0])[:, None]
    whole, scales = quantized_int8(weight)
    assert whole.dtype == torch.int8 and whole.min() >= -127
    # A scale that is rounded down cuts the largest weight by at most its rounding, 1/256 of 127 steps.
    error = (whole * scales[:, None] - weight).abs() / scales[:, None]
    assert error.max() <= 0.5 + 127 / 256 + 1e-3
    assert (error[whole.abs() < 127] <= 0.5 + 1e-3).all()
    assert not (whole[-1] * scales[-1]).any()


# ---------------------------------------------------------------------------------------------- tokens
def test_plain_tokens_are_those_of_the_published_loop(gpt):
    """Its cache of full length under a mask, its doubled rows: bit for bit the same tokens."""
    labels = torch.arange(6) % 5
    for scale in (1.0, 2.0):
        draw = seeded_draw(0, torch.arange(6), gpt.num_draws)
        inputs = labels if scale == 1 else torch.cat([labels, torch.full_like(labels, gpt.null_class)])
        loop = PublishedLoop(gpt, len(inputs))
        tokens = []
        for position in range(gpt.num_tokens):
            with torch.inference_mode():
                tokens.append(loop.next_token(inputs, position, scale, draw))
            inputs = torch.cat([tokens[-1]] * (len(inputs) // 6))
        assert torch.equal(gpt.sample(labels, draw=draw, guidance=Guidance(scale=scale)), torch.stack(tokens, 1))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_both_forms_of_the_benchmark_decode_tokens(gpt, scale):
    """Ours and the published one, at the positions that are timed."""
    for form in (our_steps, published_steps):
        tokens = form(gpt, 3, scale, (0, 1, 4))()
        assert [token.shape for token in tokens] == [(3,)] * 3
        assert all(token.min() >= 0 and token.max() < gpt.codebook_sizes[0] for token in tokens)


@pytest.mark.parametrize("rows", [1, 128])
@pytest.mark.parametrize("layout", EXACT)
def test_layouts_of_the_same_numbers_give_the_same_tokens(gpt, layout, rows):
    """Logits within 1e-4, and 64 sequences that differ only where a random number lies at a border between codes."""
    other = in_layout(gpt, layout, rows)
    labels, tokens = torch.arange(4), torch.randint(0, 256, (4, 16))
    with torch.no_grad():
        assert (other(labels, tokens) - gpt(labels, tokens)).abs().max() < 1e-4
    counts = compare_sequences(gpt, other)
    assert counts["unexplained"] == 0
    assert counts["draws_near_a_border"] > 0, "256 codes and 1,024 draws: a few are"


@pytest.mark.parametrize("layout", ROUNDED)
def test_other_numbers_are_noticed(gpt, layout):
    """The comparison above can fail: rounded weights give other sequences, for which no border is the reason."""
    other = in_layout(gpt, layout, 128)
    assert compare_sequences(gpt, other)["unexplained"] > 0
    seen = probe(gpt)
    measured = changes(seen, probe(other, seen))
    assert 1e-4 < measured["log_p_change"] < 0.5
    assert 0 <= measured["argmax_change"] < 0.2
    assert changes(seen, probe(gpt, seen)) == {"log_p_change": 0.0, "argmax_change": 0.0}


def test_a_probe_ends_early_and_knows_short_images(gpt):
    assert len(probe(gpt).indices) == 16
    short = trained_looking(GPTConfig(width=16, layers=1, heads=2, vocab_size=8, num_tokens=4), torch.device("cpu"))
    assert len(probe(short).indices) == 4


def test_impossible_codes_change_nothing():
    """Codes beyond the size of a smaller codebook have probability 0 in both networks."""
    config = GPTConfig(width=64, layers=1, heads=2, codebook_sizes=[40, 8], num_tokens=9, num_classes=3)
    torch.manual_seed(0)
    gpt = GPT(config).eval().requires_grad_(False)
    seen = probe(gpt)
    assert changes(seen, probe(in_layout(gpt, EXACT[0], 2), seen))["log_p_change"] < 1e-4


# ---------------------------------------------------------------------------------------------- the choice
def small_gpt() -> GPT:
    return trained_looking(CONFIG, torch.device("cpu"))


def test_plain_weights_stay_as_they_are(world):
    gpt = small_gpt()
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    set_weight_layout(gpt, PLAIN, 2, world)
    assert gpt.weight_facts == {}
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items())


@pytest.mark.parametrize("layout", WEIGHT_LAYOUTS)
def test_another_layout_is_stamped(layout, world, caplog):
    """With what it changes, where it changes the network; device and precision can still be asked for."""
    caplog.set_level(logging.INFO)
    gpt = small_gpt()
    set_weight_layout(gpt, layout, 2, world)
    assert gpt.weight_facts["weight_layout"] == layout
    measured = gpt.weight_facts.keys() - {"weight_layout"}
    assert measured == (set() if WEIGHT_LAYOUTS[layout].is_exact else {"log_p_change", "argmax_change"})
    assert ("log-probabilities change" in caplog.text) == bool(measured)
    assert gpt.dtype == torch.float32 and gpt.device.type == "cpu"
    assert not any(layer.weight.numel() for layer in gpt.layout_layers()), "no second copy of the weights"


def test_the_fastest_layout_is_one_of_the_same_numbers(world, caplog):
    caplog.set_level(logging.INFO)
    name = fastest_layout(small_gpt(), 2, world)
    assert name in {PLAIN, *EXACT}
    assert f"weight layout: {name}, the fastest here for 2 rows" in caplog.text
    assert all(f"{other} " in caplog.text for other in (PLAIN, *EXACT))


def test_layouts_are_for_cpus():
    with FakeTensorMode(), torch.device("cuda"):
        layers = [nn.Linear(4, 4)]
        with pytest.raises(ConfigError, match=r"--weight-layout packed is for a CPU; on a GPU choose plain"):
            require_layout(layers, "packed")


def test_a_generator_without_layers_for_it_is_told(world, monkeypatch):
    """Such as a plug-in whose layers are read by others: only plain weights, also by measurement."""
    gpt = small_gpt()
    monkeypatch.setattr(gpt, "layout_layers", lambda: Generator.layout_layers(gpt))
    with pytest.raises(ConfigError, match="--weight-layout int8: this generator names no layers for it; choose plain"):
        set_weight_layout(gpt, "int8", 2, world)
    set_weight_layout(gpt, "auto", 2, world)
    assert gpt.weight_facts == {}


def test_a_build_without_onednn_says_so(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"packed needs oneDNN, which .* lacks; it has: plain, trans"):
        require_layout(small_gpt().layout_layers(), "packed")


# ---------------------------------------------------------------------------------------------- flags
def parsed(*flags: str, is_demo: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_sampler_flags(parser, is_demo=is_demo)
    return parser.parse_args(flags)


def test_only_a_demo_chooses_by_measuring():
    """A result is made with plain weights unless the user names others."""
    assert parsed().weight_layout == parsed(is_demo=True).weight_layout == PLAIN
    assert parsed("--weight-layout", "auto", is_demo=True).weight_layout == "auto"
    with pytest.raises(argparse.ArgumentError, match="invalid choice: 'auto'"):
        parsed("--weight-layout", "auto")


def test_the_flag_reaches_the_generator(world):
    gpt = small_gpt()
    args = parsed("--weight-layout", "int8", "--greedy")
    set_sampling(args, gpt, settings_of(args), 2, world)
    assert gpt.weight_facts["weight_layout"] == "int8"
    assert not gpt.record_steps, "there are no CUDA graphs on a CPU"
    settings = SamplerSettings(Guidance(), greedy=True)
    assert settings.draw(torch.arange(2), 4) is greedy
    assert gpt.sample(torch.arange(2), draw=greedy).shape == (2, 16)


def test_results_and_folders_name_a_layout(networks, entry, tmp_path, world):
    """The protocol of an evaluation, and the settings of a folder of pictures; plain weights are not mentioned."""
    labels = torch.arange(4)
    for layout in (PLAIN, "int8"):
        gpt, tokenizer = load_gpt(networks / "gpt"), load_tokenizer(networks / "tokenizer")
        set_weight_layout(gpt, layout, 2, world)
        stream = SampleStream(gpt, tokenizer, SamplerSettings(Guidance()), labels, "balanced", 2, 16, world)
        assert stream.protocol(None).get("weight_layout", PLAIN) == layout
        assert ("log_p_change" in stream.protocol(None)) == (layout == "int8")

    flags = ["--vq-ckpt", networks / "tokenizer", "--gpt-ckpt", networks / "gpt", "--qual-num", 2, "--class-idx", "0,1"]
    flags += ["--device", "cpu", "--sample-dir", tmp_path / "samples"]
    code, _, err = entry(autoregressive.sample.main, *flags, "--weight-layout", "packed")
    assert code == 0, err
    assert json.loads((tmp_path / "samples" / "written.json").read_text())["settings"]["weight_layout"] == "packed"
    code, _, err = entry(autoregressive.sample.main, *flags)
    assert code == 2 and "was filled with other settings (weight_layout: " in err
