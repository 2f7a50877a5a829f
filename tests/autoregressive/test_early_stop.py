"""The first n tokens of an image: what a generator draws, what a tokenizer of flexible length makes of them."""

import mini
import pytest
import torch

import autoregressive.sample
from autoregressive import generate
from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings
from autoregressive.loading import load_gpt
from engine.messages import ConfigError, UserError
from evaluations.protocols.generation_accumulators import CodeSequences
from evaluations.sample_stream import SampleStream
from tokenizer import load_tokenizer

FLEXIBLE = "model.hybrid.flexible={lengths: uniform}"


@pytest.fixture(scope="module")
def pair(networks, tmp_path_factory):
    """A GPT of 8 tokens, and its tokenizer with flexible length."""
    folder = tmp_path_factory.mktemp("flexible")
    config = mini.tokenizer_config(FLEXIBLE)
    mini.export(folder / "tokenizer", config, mini.tokenizer_of(config))
    return load_gpt(networks / "gpt"), load_tokenizer(folder / "tokenizer")


@pytest.mark.parametrize("schedule", ["constant", "step", "linear"])
def test_the_first_tokens_are_those_of_the_whole_image(pair, schedule):
    """With every schedule of guidance: its ratio is that of a token among all."""
    gpt, _ = pair
    guidance = Guidance(scale=2.5, schedule=schedule)
    whole = generate(gpt, [0, 3], guidance=guidance, seed=4)
    for count in (1, 3, 8):
        assert torch.equal(generate(gpt, [0, 3], guidance=guidance, seed=4, num_tokens=count), whole[:, :count])


def test_other_numbers_are_refused(pair, monkeypatch):
    gpt, tokenizer = pair
    for wrong in (0, 9, -1):
        with pytest.raises(UserError, match="num_tokens"):
            generate(gpt, 0, num_tokens=wrong)
    with pytest.raises(ConfigError, match=r"must be 0 \(all\) or 1\.\.8, the tokens of an image"):
        SamplerSettings(Guidance(), num_tokens=9).fitted_to(gpt, tokenizer)
    with pytest.raises(ConfigError, match="the tokenizer decodes 8 tokens only"):
        SamplerSettings(Guidance(), num_tokens=3).fitted_to(gpt, mini.tokenizer_of(mini.tokenizer_config()))
    monkeypatch.setattr(type(gpt), "stops_early", False)
    for wrong in (0, 3):  # it accepts no number, and says so before it speaks of a range
        with pytest.raises(UserError, match="one after the other"):
            generate(gpt, 0, num_tokens=wrong)


def test_all_tokens_are_a_whole_image(pair):
    """A result of all tokens by their number has the settings of one without the flag."""
    gpt, tokenizer = pair
    whole = SamplerSettings(Guidance()).fitted_to(gpt, tokenizer)
    assert SamplerSettings(Guidance(), num_tokens=8).fitted_to(gpt, tokenizer).facts() == whole.facts()
    assert SamplerSettings(Guidance(), num_tokens=7).fitted_to(gpt, tokenizer).num_tokens == 7


def test_images_are_measured_at_any_number_of_tokens(pair, world):
    """Samples have n tokens and the pixels of the tokenizer's prefix; a setting of 0 leaves no trace in a result."""
    gpt, tokenizer = pair
    settings = SamplerSettings(Guidance(), seed=4, num_tokens=3)
    stream = SampleStream(gpt, tokenizer, settings, torch.tensor([0, 1, 2, 3]), "balanced", 4, 16, world)
    (batch,) = list(stream.batches())
    assert batch.tokens.shape == (4, 3) and stream.token_shape == (3,)
    assert torch.equal(batch.images, tokenizer.detokenize(batch.tokens, output="uint8"))
    assert settings.facts()["num_tokens"] == 3 and "num_tokens" not in SamplerSettings(Guidance()).facts()
    sequences = CodeSequences(4, stream.token_shape, None)
    sequences.update(batch)
    assert 0 < sequences.result(world).metrics["distinct"] <= 1


def test_pictures_of_fewer_tokens(networks, pair, tmp_path, entry):
    """The command draws them, and refuses a tokenizer of one length."""
    flags = ["--gpt-ckpt", networks / "gpt", "--num-tokens", "2", "--qual-num", "1", "--class-idx", "0,1"]
    config = mini.tokenizer_config(FLEXIBLE)
    flexible = mini.export(tmp_path / "tokenizer", config, mini.tokenizer_of(config))
    code, _, err = entry(autoregressive.sample.main, *flags, "--vq-ckpt", flexible, "--sample-dir", tmp_path / "out")
    assert code == 0 and len(list((tmp_path / "out").rglob("0*.png"))) == 2, err
    fixed = ["--vq-ckpt", networks / "tokenizer", "--sample-dir", tmp_path / "none"]
    code, _, err = entry(autoregressive.sample.main, *flags, *fixed)
    assert code == 2 and "decodes 8 tokens only" in err
