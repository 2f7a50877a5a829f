"""data.fast_decode: the same crops with slightly other pixels, for training alone; the default keeps Pillow's bits."""

import io
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import evaluations.classifier
import evaluations.linear_probe
import tokenizer.train
from engine.checkpoint.manifest import newest_checkpoint, read_manifest
from engine.config import load_config
from engine.data.config import DataConfig
from engine.data.crops import center_crop, random_crop
from engine.data.fast_decode import fast_center_crop, fast_random_crop, fast_source
from engine.data.folders import FolderSource, LooseSource
from engine.data.images import image_tensor
from engine.data.samples import decoding_stamp, training_item
from engine.data.sources import open_source
from engine.messages import ConfigError
from tokenizer import load_tokenizer
from tokenizer.cli import images_from


def photo(size: tuple[int, int], format: str = "JPEG", mode: str = "RGB") -> bytes:
    """A real photograph as a file of (width, height)."""
    image = Image.fromarray(load_sample_image("china.jpg")).resize(size, Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format, quality=92)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path):
    """Files of several sizes and formats."""
    root = tmp_path / "photos"
    root.mkdir()
    for i, (size, format, mode) in enumerate(
        [((80, 60), "JPEG", "RGB"), ((60, 81), "JPEG", "L"), ((300, 240), "JPEG", "RGB"), ((90, 70), "PNG", "RGB"),
         ((32, 32), "JPEG", "RGB"), ((500, 41), "JPEG", "RGB"), ((75, 64), "JPEG", "CMYK")]
    ):  # fmt: skip
        (root / f"{i}.{format.lower()}").write_bytes(photo(size, format, mode))
    return LooseSource(root, "data.root")


def gap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.float() - other.float()).abs()


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (300, 257)])
def test_crops_differ_from_the_exact_ones_by_two_levels_at_most(size):
    """Of images that are not halved: the same windows, in less than 1 % of the values another level."""
    image = Image.open(io.BytesIO(photo(size))).convert("RGB")
    close = gap(image_tensor(center_crop(image, 256)), fast_center_crop(image, 256))
    assert close.shape == (3, 256, 256) and close.max() <= 2 and (close > 0).float().mean() < 0.01
    for seed in range(3):
        exact = random_crop(image, 256, np.random.default_rng(seed), 0.8)
        fast = fast_random_crop(image, 256, np.random.default_rng(seed), 0.8)
        assert gap(image_tensor(exact), fast).max() <= 2 and fast.dtype == torch.uint8 and fast.is_contiguous()


def test_the_same_random_numbers_are_drawn():
    """So that crop, flip and whatever follows are those of the exact sample."""
    image = Image.new("RGB", (400, 300))
    generators = [np.random.default_rng(7) for _ in range(2)]
    random_crop(image, 256, generators[0])
    fast_random_crop(image, 256, generators[1], 0.8)
    assert generators[0].random() == generators[1].random()


def test_large_jpeg_files_are_decoded_smaller_but_never_too_small(photos):
    """Only by the copy for training, and never below what a crop needs; other formats and the source stay."""
    config = DataConfig(image_size=32, min_crop_scale=0.8)
    fast = fast_source(photos, config)
    exact_sizes, sizes = ([source.image(i).size for i in range(len(photos))] for source in (photos, fast))
    assert sizes[2] == (75, 60) and exact_sizes[2] == (300, 240)
    assert [a == b for a, b in zip(sizes, exact_sizes, strict=True)] == [i != 2 for i in range(7)]
    assert all(min(size) >= min(32, min(exact)) for size, exact in zip(sizes, exact_sizes, strict=True))
    assert fast.identity() == photos.identity()


@pytest.mark.parametrize("random", [True, False])
def test_a_fast_sample_is_close_to_the_exact_one(photos, random):
    """Of every size and format; labels, positions and counts are equal."""
    config = DataConfig(image_size=32, random_crop=random)
    exact, fast = (training_item(photos, replace(config, fast_decode=on), 3) for on in (False, True))
    for index in range(len(photos)):
        for position in (index, 1000 + index):
            one, other = exact(index, position), fast(index, position)
            is_smaller = not random and index in (2, 6)  # a pixel less in a side moves the window by half a pixel
            assert gap(one["images_u8"], other["images_u8"]).mean() < (15 if is_smaller else 3)
            assert all(torch.equal(one[key], other[key]) for key in one if key != "images_u8")
    flipped = training_item(photos, replace(config, flip_prob=1.0, fast_decode=True), 3)(0, 0)["images_u8"]
    plain = training_item(photos, replace(config, flip_prob=0.0, fast_decode=True), 3)(0, 0)["images_u8"]
    assert torch.equal(flipped, plain.flip(2))


def test_the_stamp_says_how_far_off_it_is(photos):
    config = DataConfig(image_size=32)
    assert decoding_stamp(photos, config, 0) == {}
    stamp = decoding_stamp(photos, replace(config, fast_decode=True), 0)["fast_decode"]
    assert stamp["compared_images"] == 7 and 0 < stamp["largest_difference"] <= 255
    assert 0 < stamp["mean_difference"] < 3 and 0 < stamp["different_values"] <= 1


def test_a_training_uses_it_and_says_so_and_its_tokenizer_gets_exact_pixels(image_folder, tmp_path, world):
    """In the checkpoint; images that are read for the trained tokenizer are decoded exactly."""
    config = tiny.tokenizer_config(tmp_path / "run", image_folder, "data.fast_decode=true", "loop.steps=1")
    tokenizer.train.train(config, world)
    stamp = read_manifest(newest_checkpoint(tmp_path / "run"))["stamp"]
    assert stamp["fast_decode"]["compared_images"] > 0
    args = Namespace(data=None, data_path=None, val_path=None, skip_broken=False)
    trained = load_tokenizer(tmp_path / "run")
    assert trained.provenance.config.data.fast_decode and not images_from(args, trained).fast_decode


@pytest.mark.parametrize(
    ("entry_main", "overrides"),
    [
        (evaluations.classifier.main, []),
        (evaluations.linear_probe.main, ["network.tokenizer=x", "network.gpt=y"]),
    ],
)
def test_measurements_refuse_it(entry, entry_main, overrides, image_folder):
    roots = [f"data.root={image_folder / 'train'}", f"data.val_root={image_folder / 'val'}"]
    code, _, err = entry(entry_main, *roots, *overrides, "data.fast_decode=true", "--dry-run")
    assert code == 2 and "data.fast_decode=true is for the training of tokenizers" in err


def test_sets_without_files_have_no_use_for_it():
    with pytest.raises(ConfigError, match=r"data\.fast_decode=True is set, but data\.name='mnist5k' does not use it"):
        open_source(load_config(DataConfig, overrides=["name=mnist5k", "fast_decode=true"]), "train")


def test_folders_with_classes_keep_theirs(image_folder):
    """The copy shares labels and the count of replaced images with its source."""
    source = FolderSource(image_folder / "train", "data.root")
    fast = fast_source(source, DataConfig(image_size=8))
    assert fast.labels is source.labels and fast.replaced is source.replaced
