"""--num-tokens of every command that has it: the first tokens of images, and what is refused before any work."""

import mini
import pytest
from mains import refused

import autoregressive.sample
from evaluations import generation, reconstruction, search_cfg, side_by_side, text_readback
from tokenizer import load_tokenizer, reconstruct
from tokenizer.cli import decoded_facts

OF_PICTURES = (
    "--data-path IMAGES/val --num-images 2 --sample-dir OUT --device cpu"  # tokenizer.reconstruct, side_by_side
)
OF_SAMPLES = "--gpt-ckpt GPT --extractor none --num-fid-samples 2 --output OUT/r.json --device cpu"
COMMANDS = {  # command -> (its main, its flags beside the tokenizer and --num-tokens)
    "reconstruct": (reconstruct.main, OF_PICTURES),
    "side_by_side": (side_by_side.main, OF_PICTURES),
    "reconstruction": (
        reconstruction.main, "--data folder --val-path IMAGES/val --extractor none --output OUT/r.json --device cpu",
    ),
    "text_readback": (text_readback.main, "--text-reader no_reader --output OUT/r.json --device cpu"),
    "sample": (autoregressive.sample.main, "--gpt-ckpt GPT --qual-num 1 --class-idx 0 --sample-dir OUT --device cpu"),
    "generation": (generation.main, OF_SAMPLES),
    "search_cfg": (search_cfg.main, OF_SAMPLES),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tokenizer of 8 tokens of flexible length, one that decodes all, and a GPT of these tokens."""
    root = tmp_path_factory.mktemp("networks")
    mini.export_networks(root)
    config = mini.tokenizer_config("model.hybrid.flexible={lengths: uniform}")
    mini.export(root / "flexible", config, mini.tokenizer_of(config))
    return root


@pytest.fixture
def call(place, entry, image_folder, tmp_path):
    """`call(command, tokenizer, *flags)` runs one of COMMANDS on a tokenizer of `place`."""

    def run(command, tokenizer, *flags):
        main, own = COMMANDS[command]
        paths = {"IMAGES": image_folder, "GPT": place / "gpt", "OUT": tmp_path / command}
        for name, path in paths.items():
            own = own.replace(name, str(path))
        return entry(main, "--vq-ckpt", place / tokenizer, *own.split(), *flags)

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_decoded_is_refused_with_what_is_accepted(command, call, tmp_path):
    """A tokenizer of one length, more tokens than an image has, and no number from 1; --check says the same."""
    for more in ([], ["--check"]):
        told = refused(call(command, "tokenizer", "--num-tokens", 2, *more))
        assert "--num-tokens 2" in told and "flexible length" in told
        told = refused(call(command, "flexible", "--num-tokens", 9, *more))
        assert "--num-tokens 9" in told and "1..8, the tokens of an image" in told
    assert "num" in refused(call(command, "flexible", "--num-tokens", -1))
    assert "--num-tokens" in refused(call(command, "flexible", "--num-tokens", "some"))
    assert not (tmp_path / command).exists()


def test_a_figure_of_fewer_tokens_is_another_figure(call, tmp_path):
    """Of the same folder, with other settings."""
    assert call("side_by_side", "flexible", "--num-tokens", 1)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "side_by_side").rglob("*.png")}
    assert "num_tokens" in refused(call("side_by_side", "flexible"))
    assert len(before) == 5 and before == {path: path.read_bytes() for path in before}


def test_all_tokens_are_a_whole_image(call, place):
    """Settings say the same of both, so one folder may have either; beside a longer tokenizer the number counts."""
    assert call("side_by_side", "flexible", "--num-tokens", 8)[0] == 0
    assert call("side_by_side", "flexible")[0] == 0
    whole, part = load_tokenizer(place / "flexible"), load_tokenizer(place / "flexible")
    whole.use_tokens(8)
    part.use_tokens(7)
    assert decoded_facts(whole) == {} and decoded_facts(part) == decoded_facts(whole, part) == {"num_tokens": 7}
