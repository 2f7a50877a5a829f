"""engine/data: which images there are, and how they become training samples."""

import json
import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageOps

from engine.config import load_config
from engine.data import folders, listing
from engine.data.base import SourceKind
from engine.data.config import DataConfig
from engine.data.crops import center_crop, random_crop
from engine.data.folders import FolderSource, LooseSource
from engine.data.images import IMAGE_SUFFIXES, ImageError, image_tensor
from engine.data.listing import is_image_name
from engine.data.packaged import PHOTO_CROP, ArraySource, Mnist5k, PackagedKind
from engine.data.samples import center_batch, labeled_batch, training_item
from engine.data.sources import (
    SOURCES,
    attribution_of,
    has_split,
    kind_of,
    open_path,
    open_source,
    source_names,
    summary_of,
    survey_source,
)
from engine.data.stream import position_rng
from engine.messages import ConfigError, UserError


@pytest.fixture
def folder(tmp_path):
    """A copy of a small ImageNet layout that a test may break: classes b and a, four images each."""
    tiny.write_images(tmp_path / "data", per_class=4, seed=0, classes=("b", "a"))
    return tmp_path / "data"


def config(folder, **changes) -> DataConfig:
    return DataConfig(name="folder", root=str(folder), image_size=8, num_workers=0, **changes)


# ---------------------------------------------------------------------------------------------- folders
def test_classes_and_files_are_in_alphabetical_order(folder):
    """Labels are the ranks of the class folders, as ImageNet's are; loose files beside the folders do not matter."""
    (folder / "LICENSE").write_text("text")
    tiny.write_images(folder, per_class=1, seed=1, classes=("e", "d", "n10", "n9", "c"))
    source = FolderSource(str(folder), "data.root")
    assert source.class_names == ["a", "b", "c", "d", "e", "n10", "n9"]
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2, 3, 4, 5, 6]
    assert [p.name for p in source.paths] == [f"{i:03d}.png" for i in range(4)] * 2 + ["000.png"] * 5
    assert source.where(5) == str(folder / "b" / "001.png")
    assert np.array_equal(np.asarray(source.image(5)), np.asarray(Image.open(folder / "b" / "001.png")))


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (lambda f: shutil.rmtree(f), "data.root='{f}' is not a folder"),
        (lambda f: [shutil.rmtree(f / c) for c in "ab"], "data.root='{f}' has no class folders"),
        (lambda f: (f / "c").mkdir(), "class folder {f}/c holds no images"),
        (lambda f: (f / "a" / "notes.txt").write_text("x"), "{f}/a/notes.txt is not an image file (accepted: .bmp"),
        (lambda f: (f / "a" / "deep").mkdir(), "{f}/a/deep is not an image file"),
    ],
    ids=["missing", "no classes", "empty class", "stranger", "nested folder"],
)
def test_a_wrong_layout_is_named(folder, breaking, message):
    """The message names the key or the path, and what was expected there."""
    breaking(folder)
    with pytest.raises(UserError) as caught:
        open_source(config(folder), "train")
    assert message.format(f=folder) in str(caught.value)


def test_a_flat_folder_is_pointed_to_its_kind(folder, caplog):
    """Images without class folders; images beside class folders are counted."""
    with pytest.raises(UserError, match=r"no class folders .*; its 4 images have no classes: .*data\.name=loose"):
        open_source(config(folder / "a"), "train")
    shutil.copy(folder / "a" / "000.png", folder / "000.png")
    assert len(open_source(config(folder), "train")) == 8 and "left out 1 images that lie beside" in caplog.text


def test_a_packaged_set_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package scikit-image; run: .* --extras quickstart,dev"):
        open_source(DataConfig(name="photos"), "train")


def test_no_root_at_all_is_named():
    with pytest.raises(UserError, match=r"data\.root='' is not a folder"):
        open_source(DataConfig(), "train")
    with pytest.raises(UserError, match=r"data\.val_root='/nowhere' is not a folder"):
        open_source(DataConfig(root="/", val_root="/nowhere"), "val")


def test_strangers_are_left_out_and_counted_by_option_only(folder, caplog):
    (folder / "a" / "notes.txt").write_text("x")
    (folder / "b" / "more").mkdir()
    with caplog.at_level(logging.WARNING):
        source = FolderSource(str(folder), "data.root", skip_broken=True)
    assert len(source) == 8 and "left out 1 files that are not images, 1 nested folders" in caplog.text
    (folder / "c").mkdir()
    (folder / "c" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"class folder .*/c holds no images"):
        FolderSource(str(folder), "data.root", skip_broken=True)


def test_hidden_names_are_left_out_with_a_count(folder, caplog):
    """Caches of notebooks and traces of macOS are no classes and no images, in either layout, without any option."""
    clean = open_source(config(folder), "train")
    for hidden in (".ipynb_checkpoints", "__MACOSX", "a/.ipynb_checkpoints"):
        (folder / hidden).mkdir()
        shutil.copy(folder / "a" / "000.png", folder / hidden / "000.png")
    for hidden in (".DS_Store", "b/._000.png", "b/.DS_Store"):
        (folder / hidden).write_bytes(b"x")
    with caplog.at_level(logging.INFO):
        source = open_source(config(folder), "train")
        loose = LooseSource(folder, "--data-path")
    assert source.class_names == ["a", "b"] and source.labels.tolist() == [0] * 4 + [1] * 4
    assert loose.paths == source.paths == clean.paths and source.identity() == clean.identity()
    assert source.num_hidden == loose.num_hidden == 6 and caplog.text.count("left out 6 hidden names") == 2
    assert summary_of(source) == "8 training images of 2 classes (6 hidden names left out)"
    assert summary_of(clean) == "8 training images of 2 classes"
    assert kind_of(folder / "a") == "loose", "a hidden folder is no class"


def test_links_are_followed_by_one_rule(folder, tmp_path, caplog):
    """Links to files and to folders count as what they lead to, in both layouts; circles end."""
    tiny.write_images(tmp_path / "elsewhere", per_class=3, seed=1, classes=("c",))
    (folder / "c").symlink_to(tmp_path / "elsewhere" / "c")
    (folder / "a" / "linked.png").symlink_to(tmp_path / "elsewhere" / "c" / "001.png")
    with caplog.at_level(logging.INFO):
        sources = [FolderSource(folder, "data.root"), LooseSource(folder, "data.root")]
    assert sources[0].paths == sources[1].paths and len(sources[0]) == 12
    assert caplog.text.count("followed 2 symbolic links") == 2
    (tmp_path / "elsewhere" / "c" / "circle").symlink_to(folder)
    with caplog.at_level(logging.INFO):
        loose = LooseSource(folder, "data.root")
    assert len(loose) == 12 and "leads back to a folder above it" in caplog.text
    with pytest.raises(ImageError, match="c/circle is not an image file but a folder"):
        FolderSource(folder, "data.root")


def test_names_are_in_the_order_of_paths(tmp_path):
    """Folder by folder: a name that sorts before a slash changes nothing. Suffixes are those of path objects."""
    names = ["a/b.png", "a-c/x.png", "a/c/d.JPG", "a.png", "a b/y.webp", "ä/ö.png", "a/c.tar.png"]
    for name in [*names, "png", "a/notes.pngx", "a/dot.", "a/.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    source = LooseSource(tmp_path, "data.root")
    assert source.paths == sorted(tmp_path / name for name in names)
    assert [source.where(index) for index in range(7)] == list(map(str, source.paths))
    source.take([tmp_path / name for name in names[:3]])
    assert source.paths == sorted(tmp_path / name for name in names[:3])
    for name in [*names, "png", ".png", "a/.png", "a.png/b", "..png", "a.", ""]:
        assert is_image_name(name) == (Path(name).suffix.lower() in IMAGE_SUFFIXES), name


@pytest.mark.parametrize("kind", ["folder", "loose"])
def test_what_a_survey_listed_is_opened_without_listing_it_again(folder, kind, monkeypatch):
    """Once, and only while the folders hold the same names; each opening is of its own decoding."""
    listed = []
    list_one = listing.list_folder
    for module in (folders, listing):
        monkeypatch.setattr(module, "list_folder", lambda path: listed.append(path) or list_one(path))
    data = DataConfig(name=kind, root=str(folder), image_size=8)
    survey = survey_source(data, "train")
    assert survey.num_images == 8 and len(listed) == 3
    black = replace(data, background="black")
    source = open_source(black, "train")
    assert len(listed) == 3 and len(source) == 8 and source.decoding == black.decoding
    assert open_source(data, "train") is not source and len(listed) == 6, "an opened source belongs to who opened it"
    assert open_source(data, "train").identity() + black.decoding.suffix() == source.identity()

    # A survey of another split or option is another one; a name that was added or is gone is seen.
    survey_source(data, "train")
    assert open_source(replace(data, val_root=str(folder)), "val").paths == source.paths
    assert open_source(replace(data, skip_broken=True), "train").paths == source.paths
    shutil.copy(folder / "a" / "000.png", folder / "a" / "new.png")
    assert len(open_source(data, "train")) == 9
    survey_source(data, "train")
    shutil.rmtree(folder / "b")
    assert len(open_source(data, "train")) == 5


def test_dead_links_are_named_and_left_out_by_option_only(folder, caplog):
    (folder / "a" / "dead.png").symlink_to(folder / "gone.png")
    for kind, message in ((FolderSource, "is not an image file but a link"), (LooseSource, "is a link that leads")):
        with pytest.raises(ImageError, match=f"a/dead.png {message}.*data.skip_broken=true"):
            kind(folder, "data.root")
        with pytest.raises(ImageError, match="remove it, or use --skip-broken"):
            kind(folder, "--samples")
        caplog.clear()
        source = kind(folder, "data.root", skip_broken=True)
        assert len(source) == 8 and "left out 1 links that lead nowhere" in caplog.text
    (folder / "c").symlink_to(folder / "gone")
    with pytest.raises(UserError, match="/c is a link that leads nowhere; mount its target"):
        FolderSource(folder, "data.root", skip_broken=True)


def test_a_file_that_vanishes_is_named_wherever_it_is_asked(folder):
    source, skipping = (FolderSource(folder, "data.root", skip) for skip in (False, True))
    (folder / "a" / "001.png").unlink()
    for ask in (source.identity, source.version, lambda: source.image(1)):
        with pytest.raises(ImageError, match=r"a/001\.png"):
            ask()
    assert skipping.identity() and skipping.version()


def test_file_names_need_not_be_utf8(folder):
    """Names of classes and files with bytes of Latin-1: hashed, logged, and written as JSON and UTF-8."""
    (folder / "b").rename(folder / os.fsdecode(b"caf\xe9"))
    (folder / "a" / "001.png").rename(folder / "a" / os.fsdecode(b"\xfc.png"))
    source = FolderSource(folder, "data.root")
    loose = LooseSource(folder / os.fsdecode(b"caf\xe9"), "data.root")
    assert source.class_names == ["a", "caf\\xe9"] and loose.name.endswith("caf\\xe9")
    names = [*source.class_names, *(source.where(i) for i in range(8)), loose.where(0), loose.name]
    assert json.dumps(names, ensure_ascii=False).encode("utf-8") and source.where(3).endswith("\\xfc.png")
    assert len({s.identity() for s in (source, loose, FolderSource(folder, "data.root"))}) == 2
    assert source.image(3).mode == "RGB" and source.version()


def test_decoding_comes_from_the_config_and_enters_identities(folder):
    """Old identities stay; any other background or orientation makes other caches."""
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(folder / "a" / "000.png")
    white, black = (open_source(config(folder, **c), "train") for c in ({}, {"background": "black"}))
    assert np.asarray(white.image(0)).min() == 255 and np.asarray(black.image(0)).max() == 0
    assert white.identity() == FolderSource(folder, "data.root").identity()
    assert black.identity() == f"{white.identity()} background=black"
    upright = open_source(config(folder, orientation="upright"), "train")
    assert upright.identity() == f"{white.identity()} orientation=upright"
    assert len({source.version() for source in (white, black, upright)}) == 3


@pytest.mark.parametrize("override", ["background=red", "orientation=sideways"])
def test_unknown_decodings_are_refused(override):
    key, value = override.split("=")
    with pytest.raises(ConfigError, match=rf"{key}='?{value}"):
        load_config(DataConfig, overrides=[override])


@pytest.mark.parametrize(
    ("key", "value"),
    [("root", "mine"), ("val_root", "mine"), ("held_out", "mine"), ("background", "black"), ("orientation", "upright")],
)
def test_keys_that_a_packaged_set_does_not_use_are_refused(key, value):
    """The digits would be trained instead of my pictures."""
    with pytest.raises(ConfigError, match=rf"data\.{key}='{value}' is set, but data\.name='mnist5k' does not use it"):
        open_source(DataConfig(name="mnist5k", **{key: value}), "train")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_an_unreadable_image_stops_by_default(folder):
    """The message names the file."""
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "a" / "zzz.jpeg")
    truncate(folder / "a" / "zzz.jpeg")
    source = open_source(config(folder), "train")
    with pytest.raises(ImageError, match=r"a/zzz\.jpeg is not a readable image"):
        training_item(source, config(folder), 0)(4, 0)


def test_an_unreadable_image_is_replaced_and_counted_by_option(folder, caplog):
    """Its successor takes its place, label included, with the random numbers of the position; the end wraps around."""
    for name in ("a/001.png", "a/002.png", "b/003.png"):
        truncate(folder / name)
    data = config(folder, skip_broken=True)
    source = open_source(data, "train")
    item = training_item(source, data, seed=3)
    for index, stands_in, skipped in ((0, 0, 0), (1, 3, 2), (2, 3, 1), (7, 0, 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made = item(index, 50)
        assert (int(made["index"]), int(made["skipped_images"])) == (stands_in, skipped)
        assert made["labels"] == source.labels[stands_in]
        assert torch.equal(made["images_u8"], item(stands_in, 50)["images_u8"])
        assert len(caplog.records) == skipped
    assert str(folder / "b" / "003.png") in caplog.text
    images, labels = labeled_batch(source, 8, [1, 7], skip_broken=True)
    assert torch.equal(images, center_batch(source, 8, [3, 0], skip_broken=False))
    assert labels.tolist() == source.labels[[3, 0]].tolist() and source.labels[7] != source.labels[0]
    for path in folder.rglob("*.png"):
        truncate(path)
    with pytest.raises(UserError, match="holds no readable image"):
        item(0, 0)


# ---------------------------------------------------------------------------------------------- training samples
@pytest.mark.parametrize("crop", [True, False])
def test_a_sample_depends_on_image_and_position_only(folder, crop):
    """The same twice, and against the steps written plainly: crop, then a flip, drawn from the position's numbers."""
    data = config(folder, random_crop=crop)
    source = open_source(data, "train")
    item = training_item(source, data, seed=3)
    flips = 0
    for position in range(40):
        index = (3 * position + 5) % 8
        rng = position_rng(3, position)
        image = random_crop(source.image(index), 8, rng) if crop else center_crop(source.image(index), 8)
        if rng.random() < 0.5:
            image, flips = ImageOps.mirror(image), flips + 1
        made = item(index, position)
        assert torch.equal(made["images_u8"], image_tensor(image))
        assert torch.equal(made["images_u8"], item(index, position)["images_u8"])
        assert (made["labels"], made["index"], made["position"]) == (source.labels[index], index, position)
    assert 8 < flips < 32


def test_without_augmentation_a_sample_is_the_center_crop(folder):
    data = config(folder, random_crop=False, flip_prob=0.0)
    assert not data.augmented and config(folder).augmented
    source = open_source(data, "train")
    item = training_item(source, data, seed=3)
    made = torch.stack([item(i, 100 + i)["images_u8"] for i in range(8)])
    assert torch.equal(made, center_batch(source, 8, range(8), skip_broken=False))


def test_splits_that_a_config_names():
    assert has_split(DataConfig(root="/x"), "train") and not has_split(DataConfig(root="/x"), "val")
    assert has_split(DataConfig(root="/x", val_root="/y"), "val") and has_split(DataConfig(name="mnist5k"), "val")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"name": "mnist"}, f"name='mnist' must be one of: {', '.join(sorted(SOURCES))}"),
        ({"image_size": 4}, "image_size=4 must be 8 or more"),
        ({"min_crop_scale": 0.0}, "min_crop_scale=0.0 must be in (0, 1]"),
        ({"flip_prob": 1.5}, "flip_prob=1.5 must be in [0, 1]"),
        ({"num_workers": -1}, "num_workers=-1 must be 0 or more"),
        ({"global_batch_size": 0}, "global_batch_size=0 must be 1 or more"),
    ],
)
def test_settings_out_of_range_are_named(setting, problem):
    """One line for each wrong value: the key, what was found, what is accepted."""
    with pytest.raises(ConfigError) as caught:
        DataConfig(**setting)
    assert str(caught.value) == problem


# ---------------------------------------------------------------------------------------------- kinds of sources
@dataclass(kw_only=True, slots=True)
class StripesConfig:
    """The section of a foreign kind."""

    count: int = 3


class Stripes(SourceKind):
    """A foreign kind: made from its own section of the config."""

    config_class = StripesConfig
    fits_memory = True

    @classmethod
    def open(cls, config, split):
        pixels = [np.full((8, 8, 3), i, np.uint8) for i in range(config.stripes.count)]
        return ArraySource("stripes", pixels, np.zeros(len(pixels), np.int64), ["all"])


class Pages(FolderSource):
    """A foreign layout: a folder with a file `pages`."""

    @classmethod
    def holds(cls, path):
        return (Path(path) / "pages").exists()


def test_a_foreign_kind_is_one_class_in_the_registry(folder, monkeypatch):
    """It opens, is listed, may claim paths before the layouts that come with the project, and has its own section."""
    monkeypatch.setitem(SOURCES, "stripes", Stripes)
    monkeypatch.setitem(SOURCES, "pages", Pages)
    data = load_config(DataConfig, overrides=["name=stripes", "stripes.count=5"])
    assert len(open_source(data, "train")) == 5 and has_split(data, "val")
    with pytest.raises(ConfigError, match=r"data\.stripes is set, but data\.name='folder' does not use it"):
        open_source(load_config(DataConfig, overrides=[f"root={folder}", "stripes.count=5"]), "train")
    assert (
        source_names() == "folder, loose, mnist5k, nested_tar, pages, parquet, photos, shards, stripes, text, twemoji"
    )
    assert source_names(packaged_only=True) == "mnist5k, photos, stripes, text, twemoji"
    assert kind_of(folder) == "folder"
    (folder / "pages").write_text("")
    assert kind_of(folder) == "pages" and isinstance(open_path(folder, "--data-path"), Pages)


def test_what_may_be_assumed_of_a_kind():
    """Packaged sets need no path, and are small enough for cached features; loose images have no classes."""
    kinds = {"folder", "loose", "shards", "nested_tar", "parquet"}
    assert {name for name, kind in SOURCES.items() if kind.needs_root} == kinds
    assert {name for name, kind in SOURCES.items() if kind.fits_memory} == {"mnist5k", "photos", "text", "twemoji"}
    assert [name for name, kind in SOURCES.items() if not kind.has_classes] == ["loose"]


# ---------------------------------------------------------------------------------------------- packaged sets
SIZES = {  # training images, held-out images, classes, pixels
    "mnist5k": (4500, 500, 10, 32),
    "twemoji": (1675, 190, 9, 72),
    "photos": (2928, 431, 13, 128),
}


def packaged_kinds() -> dict[str, type[PackagedKind]]:
    return {name: kind for name, kind in SOURCES.items() if issubclass(kind, PackagedKind)}


@pytest.fixture(scope="module")
def packaged():
    """All packaged sets, read once."""
    return {name: (kind.read("train"), kind.read("val")) for name, kind in packaged_kinds().items()}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_packaged_sets_have_the_stated_sizes(packaged, name):
    train, val = packaged[name]
    num_train, num_val, num_classes, side = SIZES[name]
    assert (len(train), len(val), len(train.class_names)) == (num_train, num_val, num_classes)
    assert train.class_names == val.class_names
    for source in (train, val):
        image = source.image(0)
        assert (image.mode, image.size) == ("RGB", (side, side))
        assert set(np.unique(source.labels)) == set(range(num_classes)) and source.labels.dtype == np.int64
    assert SOURCES[name].num_held_out == num_val and SOURCES[name].fits_memory


@pytest.mark.parametrize("name", sorted(SIZES))
def test_nothing_of_val_occurs_in_train(packaged, name):
    """No held-out picture is also a training picture. Regression: several emoji share one picture."""
    train, val = ([np.asarray(image).tobytes() for image in source.images] for source in packaged[name])
    assert not set(train) & set(val)
    if name != "photos":
        assert len(set(train)) == len(train), "no picture occurs twice"


def test_photo_crops_of_val_share_no_pixel_with_train(packaged):
    """Held-out crops lie to the right of every training crop of the same photograph."""
    columns = []
    for source in packaged["photos"]:
        found = {}
        for name in source.index_of:
            file, x = name.split("@")[0], int(name.split("@")[1].split(",")[0])
            found.setdefault(file, []).append(x)
        columns.append(found)
    train, val = columns
    assert train.keys() == val.keys() and len(train) == 13
    assert all(max(train[file]) + PHOTO_CROP <= min(val[file]) for file in train)


def test_digits_are_white_on_black_and_every_class_is_held_out(packaged):
    """Sanity of the padding: the border is black, ink is bright, the digits of both splits are balanced."""
    train, val = packaged["mnist5k"]
    pixels = np.stack([np.asarray(i) for i in val.images])
    assert pixels[:, :2].max() == 0 and pixels[..., 2:-2, 2:-2, :].max() == 255
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert np.bincount(val.labels).min() > 30 and np.bincount(train.labels).min() > 400


def test_the_split_is_fixed():
    """The same images are held out every time, so numbers of different runs can be compared."""
    first, second = Mnist5k.read("val"), Mnist5k.read("val")
    assert all(np.array_equal(a, b) for a, b in zip(first.images, second.images, strict=True))
    assert first.index_of[:3] == second.index_of[:3] and first.where(0) == first.index_of[0]


def test_every_set_has_an_attribution():
    """Twemoji is CC-BY: the license asks for author and license."""
    assert all(attribution_of(name) for name in packaged_kinds())
    assert all(part in attribution_of("twemoji") for part in ("Twitter", "CC-BY 4.0"))
    assert attribution_of("folder") == attribution_of("another set") == ""
