"""What a notebook does with a tokenizer: pictures in, codes, pictures out, files; and small functions over codes."""

import mini
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from engine.checkpoint.stamp import read_stamp
from engine.config import load_config
from engine.data.images import to_float, to_pil
from engine.messages import UserError
from tokenizer import Tokenizer, load_tokenizer
from tokenizer.models.llamagen import LlamaGenTokenizer
from tokenizer.models.registry import build_tokenizer
from tokenizer.token_tools import interpolate, map_tokens, replace_tokens, token_map
from tokenizer.training.config import TokenizerTrainConfig


@pytest.fixture(scope="module")
def tokenizer(networks):
    """A 1D tokenizer: 16 px, 8 tokens of 32 codes."""
    return Tokenizer.from_pretrained(networks / "tokenizer")


@pytest.fixture(scope="module")
def grid_tokenizer(tmp_path_factory):
    """A convolutional one: 8 px, 4 x 4 tokens of 2 x 4 codes, other sizes too."""
    path = tmp_path_factory.mktemp("wetok") / "config.yaml"
    path.write_text(tiny.WETOK)
    config = load_config(TokenizerTrainConfig, [path])
    torch.manual_seed(0)
    return build_tokenizer(config.model, config.data.image_size).eval().requires_grad_(False)


def test_pictures_become_codes_and_pictures_again(tokenizer):
    images = to_float(mini.random_images(2))
    codes = tokenizer.tokenize([to_pil(image) for image in mini.random_images(2)])
    assert codes.dtype == torch.int64 and torch.equal(codes, tokenizer.encode(images).indices)
    assert torch.equal(codes, tokenizer.tokenize(images))
    floats = tokenizer.detokenize(codes)
    assert torch.equal(floats, tokenizer.decode_indices(codes).clamp(-1, 1))
    pictures = tokenizer.detokenize(codes.tolist(), output="pil")
    pixels = tokenizer.detokenize(codes.numpy().astype(np.uint16), output="uint8")
    assert [picture.size for picture in pictures] == [(16, 16)] * 2
    assert np.array_equal(np.asarray(pictures[1]), pixels[1].permute(1, 2, 0).numpy())
    one = tokenizer.detokenize(codes[0])  # one image may come without the axis of a batch
    assert torch.equal(one, tokenizer.detokenize(codes[:1])) and torch.allclose(one, floats[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0] * 7], "7 tokens are no image of this tokenizer: it takes 8"),
        ([[0] * 7 + [32]], r"the code 32 \(image 0, token 7\) is not in 0..31"),
        ([[-1] + [0] * 7], r"the code -1 \(image 0, token 0\) is not in 0..31"),
        (torch.zeros(0, 8, dtype=torch.int64), r"there are no tokens: they have shape \(0, 8\)"),
        ([[0.0] * 8], "tokens are of type float64; whole numbers are accepted"),
        (torch.zeros(2, 3, 16, 16), r"of type float32.*\(are these images\?\)"),
        (torch.zeros(2, 4, 2, dtype=torch.long), r"shape \(2, 4, 2\); accepted: \(B, N\), or \(N,\) for one image"),
        ([[0, 1], [2]], "tokens are no table of numbers"),
    ],
)
def test_wrong_codes_are_named(tokenizer, tokens, message):
    with pytest.raises(UserError, match=message):
        tokenizer.detokenize(tokens)


def test_codes_of_several_indices(grid_tokenizer):
    codes = grid_tokenizer.tokenize(mini.random_images(2, size=8))
    assert codes.shape == (2, 16, 2)
    assert torch.equal(grid_tokenizer.detokenize(codes[1]), grid_tokenizer.detokenize(codes[1:]))
    wrong = codes.clone()
    wrong[1, 3, 1] = 4
    with pytest.raises(UserError, match=r"the code 4 \(image 1, token 3, index 1\) is not in 0..3"):
        grid_tokenizer.detokenize(wrong)
    with pytest.raises(UserError, match=r"accepted: \(B, N, 2\), or \(N, 2\)"):
        grid_tokenizer.detokenize(codes[..., 0])

    # Images that are not square.
    wide = grid_tokenizer.tokenize(np.zeros((8, 16, 3), np.uint8))
    assert grid_tokenizer.detokenize(wide, grid=(4, 8)).shape == (1, 3, 8, 16)
    with pytest.raises(UserError, match=r"32 tokens do not fill the grid: accepted are a square number \(or a grid="):
        grid_tokenizer.detokenize(wide)


# ------------------------------------------------------------------------------------------------ files
def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.yaml", "model.safetensors"]
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    assert again.provenance.fingerprint == tokenizer.provenance.fingerprint
    codes = tokenizer.tokenize(mini.random_images(2))
    assert torch.equal(again.detokenize(codes), tokenizer.detokenize(codes))
    with pytest.raises(UserError, match="exists already; nothing is overwritten"):
        tokenizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="holds a HybridTokenizer, not a LlamaGenTokenizer"):
        LlamaGenTokenizer.from_pretrained(tmp_path / "saved")


def test_a_fresh_tokenizer_has_no_config_to_save(grid_tokenizer, tmp_path):
    with pytest.raises(UserError, match="only a network that was loaded can be saved"):
        grid_tokenizer.save_pretrained(tmp_path / "saved")


def test_codes_of_the_last_training_images_are_not_shared(codes, tmp_path):
    """They would decode to these images."""
    trained = load_tokenizer(codes[1])
    assert (trained.quantizer.recent_indices >= 0).any()
    trained.save_pretrained(tmp_path / "saved")
    shared = load_tokenizer(tmp_path / "saved")
    assert shared.provenance.fingerprint == trained.provenance.fingerprint
    empty = trained.quantizer.empty_windows()
    assert all(torch.equal(getattr(shared.quantizer, name), window) for name, window in empty.items())
    assert (trained.quantizer.recent_indices >= 0).any()  # the loaded one keeps them


def test_a_folder_of_several_networks_stands_for_the_one_that_is_asked_for(networks):
    assert load_tokenizer(networks).provenance.path == str(networks / "tokenizer")


def test_a_stamp_that_is_none_is_refused(tokenizer, tmp_path):
    """Anybody may have written the header of a file."""
    from safetensors.torch import load_file, save_file

    tokenizer.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model.safetensors"
    for text in ("{", "[]", "[" * 100_000, '{"classes": {"names": [1]}}', '{"plugins": 3}'):
        save_file(load_file(path), path, metadata={"stamp": text})
        with pytest.raises(UserError, match="the stamp in the header of"):
            Tokenizer.from_pretrained(tmp_path / "saved")
    save_file(load_file(path), path, metadata={"other": "x"})
    assert read_stamp(path) == {}


# ------------------------------------------------------------------------------------------------ functions over codes
def test_token_maps(tokenizer, grid_tokenizer):
    codes = grid_tokenizer.tokenize(mini.random_images(2, size=8))
    maps = token_map(grid_tokenizer, codes)
    assert maps.shape == (2, 4, 4, 2) and torch.equal(maps[:, 1, 2], codes[:, 6])
    assert torch.equal(map_tokens(maps), codes)
    with pytest.raises(UserError, match="16 tokens do not fill a grid of 4 x 8"):
        token_map(grid_tokenizer, codes, grid=(4, 8))
    with pytest.raises(UserError, match="HybridTokenizer have no places in the image"):
        token_map(tokenizer, [[0] * 8])


def test_tokens_are_replaced_in_a_copy(tokenizer, grid_tokenizer):
    codes = torch.arange(16).reshape(2, 8)
    changed = replace_tokens(tokenizer, codes, {3: 31, 7: 0})
    assert changed[:, 3].tolist() == [31, 31] and changed[:, 7].tolist() == [0, 0]
    assert torch.equal(changed[:, :3], codes[:, :3]) and codes[0, 3] == 3
    of_groups = replace_tokens(grid_tokenizer, torch.zeros(1, 16, 2, dtype=torch.long), {5: (3, 2)})
    assert of_groups[0, 5].tolist() == [3, 2] and of_groups.sum() == 5
    for replacements, message in (({8: 0}, "there is no token 8; an image has 0..7"), ({0: 32}, "the code 32")):
        with pytest.raises(UserError, match=message):
            replace_tokens(tokenizer, codes, replacements)


@pytest.mark.parametrize("space", ["latents", "codes"])
def test_pictures_between_two_pictures(tokenizer, grid_tokenizer, space):
    for network, size in ((tokenizer, 16), (grid_tokenizer, 8)):
        first, second = (to_pil(image) for image in mini.random_images(2, size=size))
        between = interpolate(network, first, second, steps=3, space=space)
        assert between.shape == (3, 3, size, size) and between.abs().max() <= 1
        ends = network.detokenize(network.tokenize([first, second]))
        assert torch.allclose(between[[0, 2]], ends, atol=1e-5)
    with pytest.raises(UserError, match="steps=1 must be 2 or more"):
        interpolate(tokenizer, Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16)), steps=1)
    with pytest.raises(UserError, match="space='pixels' is not known; choose one of: latents, codes"):
        interpolate(tokenizer, Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16)), space="pixels")
