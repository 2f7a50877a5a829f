"""The figure of pictures beside their reconstructions."""

import mini
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_every_family import FAMILIES

from engine.config import load_config
from engine.data.crops import center_crop, pad_resized
from engine.data.images import image_tensor, to_float, to_uint8
from engine.messages import UserError
from engine.outputs import listed_images
from evaluations import side_by_side
from tokenizer import load_tokenizer
from tokenizer.training.config import TokenizerTrainConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two convolutional tokenizers of 16 px, one with learned positions, and pictures of other shapes."""
    root = tmp_path_factory.mktemp("place")
    for name, family, seed in (("first", "wetok", 0), ("second", "wetok", 1), ("fixed", "hybrid", 0)):
        config = load_config(TokenizerTrainConfig, overrides=FAMILIES[family])
        mini.export(root / name, config, mini.tokenizer_of(config, seed))
    tiny.write_images(root / "pictures", per_class=2, seed=4, size=50)
    return root


def test_each_row_is_a_picture_and_what_every_tokenizer_makes_of_it(place, tmp_path, entry):
    """At a size that neither was trained for; single files beside the figure hold the same pixels."""
    folder = tmp_path / "figure"
    flags = [
        "--vq-ckpt", place / "first", "--vq-ckpt", place / "second", "--label", "one", "--label", "two",
        "--data-path", place / "pictures", "--num-images", 3, "--image-size", 48, "--sample-dir", folder,
    ]  # fmt: skip
    code, _, err = entry(side_by_side.main, *flags)
    assert code == 0, err

    first = place / "pictures" / "cat" / "000.png"
    original = image_tensor(center_crop(Image.open(first), 48))
    assert torch.equal(image_tensor(Image.open(folder / "cat" / "000_gt.png")), original)
    for number, name in enumerate(("first", "second"), start=1):
        tokenizer = load_tokenizer(place / name)
        tokenizer.set_image_size(48)
        with torch.inference_mode():
            codes = tokenizer.encode(to_float(original[None])).indices
            expected = to_uint8(tokenizer.decode_indices(codes))[0].int()
        written = image_tensor(Image.open(folder / "cat" / f"000_{number}.png")).int()
        assert (written - expected).abs().max() <= 1

    figure = np.asarray(Image.open(folder / "side_by_side.png"))
    assert figure.shape[0] > 3 * 2 * 48 and figure.shape[1] == 2 * (3 * 50 + 2), "3 rows of 3, enlarged twice"
    with pytest.raises(UserError, match="holds pictures to look at, not to measure"):
        listed_images(folder)


def test_a_whole_picture_stands_on_black():
    """The long side fills the square; the rest is black, equally on both sides."""
    picture = pad_resized(Image.new("RGB", (30, 10), "white"), 48)
    pixels = np.asarray(picture)
    assert picture.size == (48, 48) and (pixels[16:32] == 255).all()
    assert (pixels[:16] == 0).all() and (pixels[32:] == 0).all()


def test_what_does_not_fit_is_said_before_anything_is_written(place, tmp_path, entry):
    """A tokenizer of one size, and labels that do not match."""
    data = ["--data-path", place / "pictures", "--sample-dir", tmp_path / "x"]
    code, _, err = entry(side_by_side.main, "--vq-ckpt", place / "fixed", "--image-size", 48, *data)
    assert code == 2 and "--image-size 48, but the tokenizer" in err
    code, _, err = entry(side_by_side.main, "--vq-ckpt", place / "first", "--label", "a", "--label", "b", *data)
    assert code == 2 and "--label is given 2 times for 1 tokenizers" in err
    assert not (tmp_path / "x").exists()
