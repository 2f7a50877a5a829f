"""How the bits of a token are drawn: flags in the place of a config, what a result says of them, what is refused."""

import argparse

import mini
import pytest
import torch
from small_networks import generator as small_generator

import autoregressive.sample
from autoregressive import generate, load_gpt
from autoregressive.bit_drawing import BitDrawing
from autoregressive.cli import add_sampler_flags, settings_of
from autoregressive.generate import num_draws_of
from autoregressive.image_sampler import SamplerSettings
from autoregressive.models.bits import BitsConfig
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.registry import build_generator
from autoregressive.sampling import seeded_draw
from autoregressive.training.config import GPTTrainConfig
from engine.config import load_config
from engine.data.images import image_tensor, read_image
from engine.messages import ConfigError, UserError
from tokenizer import load_tokenizer

DRAWINGS = [
    {"allocation": [1] * 5, "order": "fixed", "temperature": "constant"},
    {"allocation": [1, 4], "order": "confidence", "temperature": "constant"},
    {"allocation": [5], "order": "fixed"},
    {"order": "fixed"},
    {"temperature": "constant"},
]


def gpt_of(**bits) -> GPT:
    """Two tokens of 5 bits. The weights do not depend on how bits are drawn."""
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 1, "heads": 2, "num_tokens": 2, "num_classes": 3, "codebook_sizes": [4, 8]}
    gpt = GPT(GPTConfig(**sizes, head="masked_bits", bits=BitsConfig(**bits)))
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return gpt.eval()


def drawing_of(bits: dict) -> BitDrawing:
    allocation = bits.get("allocation")
    return BitDrawing(**bits | {"allocation": None if allocation is None else tuple(allocation)})


def settings_from(*flags: str) -> SamplerSettings:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_sampler_flags(parser)
    return settings_of(parser.parse_args(flags))


@pytest.mark.parametrize("bits", DRAWINGS)
def test_a_call_draws_what_a_config_of_the_same_settings_draws(bits):
    """Bit for bit, under guidance; and the other settings stay those of the config."""
    configured = generate(gpt_of(**bits), [0, 1, 2], seed=3, guidance_scale=2.0)
    assert torch.equal(generate(gpt_of(), [0, 1, 2], seed=3, guidance_scale=2.0, bits=drawing_of(bits)), configured)
    by_itself = generate(gpt_of(), [0, 1, 2] * 20, seed=3)
    assert not torch.equal(generate(gpt_of(), [0, 1, 2] * 20, seed=3, bits=drawing_of(bits)), by_itself)


@pytest.mark.parametrize("bits", DRAWINGS)
def test_every_random_number_of_a_drawing_is_in_reach(bits):
    gpt = gpt_of()
    drawing = gpt.completed_bits(drawing_of(bits))
    table = seeded_draw(0, torch.arange(1), num_draws_of(gpt, None, drawing))
    seen = set()

    def draw(p, position):
        seen.add(position)
        return table(p, position)

    def numbers(first, count):
        seen.update(range(first, first + count))
        return table.numbers(first, count)

    gpt.sample(torch.zeros(1, dtype=torch.long), draw=draw, numbers=numbers, bits=drawing)
    assert seen == set(range(table.table.shape[1]))


def test_steps_that_were_recorded_for_one_allocation_serve_another():
    """The masked share is that of the bits, whatever the number of the step; and the exact one of every count."""
    head = gpt_of().head
    hidden = torch.randn(3, 16)
    bits = torch.tensor([[0, 1, 2, 2, 2]] * 3)
    cache = head.new_cache(3, torch.float32, torch.device("cpu"))
    one, other = (head.next_logits(hidden, bits, number, cache) for number in (1, 3))
    projected = head.project(head.hidden_norm(hidden))
    assert torch.equal(one, other)
    assert torch.equal(one, head.bit_logits(projected, bits, torch.tensor([1 - 2 / 5], dtype=torch.float32)))


def test_flags_set_single_settings_and_results_say_what_is_not_the_configs():
    gpt = gpt_of(order="fixed")
    for flags, expected in (
        (["--bit-allocation", "1"], {"allocation": (1,) * 5, "order": "fixed", "temperature": "falling"}),
        (["--bit-order", "confidence"], {"allocation": (1, 1, 3), "order": "confidence", "temperature": "falling"}),
        (["--bit-temperature", "constant"], {"allocation": (1, 1, 3), "order": "fixed", "temperature": "constant"}),
        (["--bit-order", "fixed"], None),
        ([], None),
    ):
        settings = settings_from(*flags).fitted_to(gpt, None)
        assert settings.facts().get("bits") == expected and ("bits" in settings.in_words()) == (expected is not None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--bit-allocation", "2,2"],
            "bits in steps of 2,2: a token has 5; give numbers whose sum is 5, such as 1,1,3",
        ),
        (["--bit-allocation", "2"], "a token has 5; .* or one that divides it"),
        (["--bit-allocation", "5,0"], r"allocation=\(5, 0\) must be whole numbers of 1 or more"),
        (["--bit-allocation", "a"], "such as 2,2,5,7"),
        (["--bit-order", "first"], "choose from '?confidence'?, '?fixed'?"),
        (["--bit-temperature", "2"], "choose from '?falling'?, '?constant'?"),
    ],
)
def test_what_cannot_be_drawn_is_named_with_what_is_accepted(flags, message):
    with pytest.raises((argparse.ArgumentError, ConfigError), match=message):
        settings_from(*flags).fitted_to(gpt_of(), None)


def test_a_generator_without_bits_refuses_them():
    plain = small_generator("plain")[1].eval()
    with pytest.raises(ConfigError, match="--bit-temperature are for a generator that writes the bits of a token"):
        settings_from("--bit-order", "fixed").fitted_to(plain, None)
    with pytest.raises(UserError, match="does not write the bits"):
        generate(plain, [0], bits=BitDrawing(order="fixed"))
    with pytest.raises(UserError, match="must be a BitDrawing"):
        generate(gpt_of(), [0], bits="fixed")


def test_the_command_draws_them(networks, tmp_path, entry):
    """Pictures of `generate` with these settings, beside the codes of a tokenizer of 32 codes."""
    sizes = "{width: 16, layers: 1, heads: 2, vocab_size: 32, num_tokens: 8, num_classes: 4, head: masked_bits}"
    config = load_config(GPTTrainConfig, overrides=[f"model.gpt={sizes}"])
    torch.manual_seed(0)
    network = build_generator(config.model)
    torch.nn.init.normal_(network.head.output.weight)
    folder = mini.export(tmp_path / "gpt", config, network)
    flags = ["--vq-ckpt", networks / "tokenizer", "--gpt-ckpt", folder, "--qual-num", 2, "--class-idx", "0"]
    drawn = ["--bit-allocation", "1,4", "--bit-order", "fixed", "--sample-dir", tmp_path / "out"]
    code, _, err = entry(autoregressive.sample.main, *flags, *drawn)
    assert code == 0, err
    pictures = torch.stack([image_tensor(read_image(file)) for file in sorted((tmp_path / "out").rglob("0*.png"))])
    bits = BitDrawing(allocation=(1, 4), order="fixed")
    tokens = generate(load_gpt(folder), [0, 0], guidance_scale=2.0, seed=0, bits=bits)
    assert torch.equal(pictures, load_tokenizer(networks / "tokenizer").detokenize(tokens, output="uint8"))
    code, _, err = entry(autoregressive.sample.main, *flags, *drawn[2:])
    assert code == 2 and "bits" in err  # a folder of other settings
