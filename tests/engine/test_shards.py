"""engine/data/shards.py: images in tar files, in an order that depends on seed and position only."""

import gzip
import io
import logging
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import webdataset
from PIL import Image

from engine.config import load_config
from engine.data.config import DataConfig
from engine.data.folders import FolderSource
from engine.data.images import ImageError
from engine.data.samples import training_item
from engine.data.shards import ShardSource
from engine.data.sources import kind_of, open_source, summary_of
from engine.data.stream import stream_opener
from engine.messages import UserError
from engine.world import World
from tokenizer.training.config import TokenizerTrainConfig

PER_CLASS = 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "visual-tokenizers"


@pytest.fixture
def folder(tmp_path):
    """Ten images in class folders."""
    tiny.write_images(tmp_path / "images", per_class=PER_CLASS, seed=0)
    return FolderSource(str(tmp_path / "images"), "data.root")


def written(root: Path, folder: FolderSource, labeled: bool = True, count: int = 4) -> Path:
    """The images of `folder` as shards of `count`, made by webdataset's own writer."""
    root.mkdir()
    with webdataset.ShardWriter(str(root / "train-%06d.tar"), maxcount=count, verbose=0) as writer:
        for i, path in enumerate(folder.paths):
            label = {"cls": int(folder.labels[i])} if labeled else {}
            writer.write({"__key__": f"a/{i:04d}", "png": path.read_bytes(), "json": {"i": i}, **label})
    return root


@pytest.fixture
def shards(tmp_path, folder):
    return written(tmp_path / "shards", folder)


def pixels(source, index: int) -> np.ndarray:
    return np.asarray(source.image(index))


def test_shards_hold_what_webdataset_reads_from_them(shards, folder):
    """Same images, labels and order as the package's own reader gives, and as the folder that they were made of."""
    source = ShardSource(str(shards), "data.root")
    paths = [str(path) for path in sorted(shards.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    assert len(paths) == 3 and len(source) == len(theirs) == len(folder) == 2 * PER_CLASS
    for index, (image, label) in enumerate(theirs):
        assert np.array_equal(pixels(source, index), image) and source.labels[index] == label
        assert np.array_equal(pixels(source, index), pixels(folder, index))
    assert source.labels.tolist() == folder.labels.tolist() and source.class_names == ["0", "1"]


def test_training_sees_the_same_samples_from_shards_as_from_a_folder(shards, folder):
    """Batches are equal, tensor by tensor, for one and for two ranks, from the start and from the middle."""
    config = load_config(DataConfig, overrides=["image_size=8", "global_batch_size=4", "num_workers=0"])
    loop = load_config(TokenizerTrainConfig, overrides=["loop.seed=5"]).loop
    for size in (1, 2):
        for rank in range(size):
            world = World(rank, size, rank, torch.device("cpu"))
            for start in (0, 3):
                ours, theirs = (
                    list(islice(stream_opener(training_item(s, config, 5), len(s), config, loop, world)(start), 4))
                    for s in (ShardSource(str(shards), "data.root"), folder)
                )
                for a, b in zip(ours, theirs, strict=True):
                    assert all(torch.equal(a[key], b[key]) for key in b)


def test_patterns_folders_and_data_configs_name_the_same_shards(shards):
    """A folder, a pattern with braces, data.root and data.val_root."""
    pattern = str(shards / "train-{000000..000002}.tar")
    sources = [ShardSource(str(shards), "data.root"), ShardSource(pattern, "data.root")]
    for key, split in (("root", "train"), ("val_root", "val")):
        config = load_config(DataConfig, overrides=["name=shards", f"{key}={shards}"])
        sources.append(open_source(config, split))
    assert len({source.identity() for source in sources}) == 1
    assert [kind_of(p) for p in (shards, pattern, shards.parent, shards.parent / "images" / "cat")] == [
        "shards", "shards", "folder", "loose",
    ]  # fmt: skip


def test_beside_shards_held_out_images_may_lie_in_a_folder(shards, folder):
    """The recipes train on tar files and validate on ImageNet's folder, or on any folder of images."""
    for root, count in ((folder.name, 10), (f"{folder.name}/cat", 5), (str(shards), 10)):
        config = load_config(DataConfig, overrides=["name=shards", f"root={shards}", f"val_root={root}"])
        assert len(open_source(config, "val")) == count and len(open_source(config, "train")) == 10


def test_places_are_looked_up_once_and_again_when_a_shard_changes(shards, folder, cache, monkeypatch):
    """The second start reads no shard; a shard that is written anew is read anew."""
    before = ShardSource(str(shards), "data.root")
    identity = before.identity()
    assert len(list(cache.glob("*.index"))) == 1
    monkeypatch.setattr("engine.data.shards.list_tar", lambda *_: pytest.fail("read again"))
    again = ShardSource(str(shards), "data.root")
    assert again.version() == before.version() and np.array_equal(again.starts, before.starts)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    (shards / "train-000002.tar").unlink()
    assert len(ShardSource(str(shards), "data.root")) == 8
    assert ShardSource(str(shards), "data.root").identity() != identity


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:40], lambda c: c[:-16], lambda c: b"x" * len(c)])
def test_a_damaged_index_is_built_again(shards, cache, caplog, damage):
    """An empty, cut or overwritten file of the cache is as good as none: a line in the log, and a sound file again."""
    before = ShardSource(str(shards), "data.root")
    starts, identity = before.starts.copy(), before.identity()
    del before  # it maps the file that is damaged below
    (file,) = cache.glob("*.index")
    content = file.read_bytes()
    file.write_bytes(damage(content))
    again = ShardSource(str(shards), "data.root")
    assert np.array_equal(again.starts, starts) and again.identity() == identity
    assert f"cached index {file} is damaged" in caplog.text and file.read_bytes() == content


def test_images_without_labels_are_one_class(tmp_path, folder):
    source = ShardSource(str(written(tmp_path / "plain", folder, labeled=False)), "data.root")
    assert source.class_names == ["all"] and source.labels.tolist() == [0] * 10


def add(path: Path, **files: bytes) -> None:
    """Adds files to a tar; `__` in a name stands for the dot."""
    with tarfile.open(path, "a") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_hidden_members_are_left_out_with_a_count_that_is_cached(shards, caplog):
    """Traces of macOS and hidden folders; names that begin with "./" are not hidden."""
    before = ShardSource(str(shards), "data.root")
    with tarfile.open(shards / "train-000001.tar", "a") as tar:
        for name in ("._0001.jpg", "__MACOSX/0001.jpg", ".cache/x.png", "./z/last.png", "./z/last.cls"):
            content = b"1" if name.endswith("cls") else b"x"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            source = ShardSource(str(shards), "data.root")
        assert len(source) == len(before) + 1 and source.num_hidden == 3
        assert "left out 3 hidden names" in caplog.text
    assert summary_of(source) == "11 training images of 2 classes (3 hidden names left out)"


def test_shards_are_decoded_as_the_config_says(shards):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(buffer, "PNG")
    add(shards / "train-000002.tar", clear__png=buffer.getvalue(), clear__cls=b"1")
    white, black = (
        open_source(load_config(DataConfig, overrides=["name=shards", f"root={shards}", f"background={b}"]), "train")
        for b in ("white", "black")
    )
    assert pixels(white, len(white) - 1).min() == 255 and pixels(black, len(black) - 1).max() == 0
    assert black.identity() == f"{white.identity()} background=black"


def test_a_broken_image_is_named_and_skipped_only_when_asked(shards):
    """The error names shard and byte; with skip_broken the next image stands in for it and is counted."""
    add(shards / "train-000001.tar", b1__jpg=b"no image", b1__cls=b"1")
    source = ShardSource(str(shards), "data.root")
    broken = 8
    with pytest.raises(ImageError, match=r"train-000001.tar \(image at byte \d+\) is not a readable image"):
        source.image(broken)
    config = load_config(DataConfig, overrides=["image_size=8", "skip_broken=true"])
    item = training_item(source, config, 0)(broken, 0)
    assert int(item["skipped_images"]) == 1 and int(item["index"]) == broken + 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"b__png": b"x", "b__jpg": b"y"}, "train-000001.tar: sample b has two images"),
        ({"b__cls": b"1"}, "train-000001.tar: sample b has a label but no image"),
        ({"b__png": b"x", "b__cls": b"dog"}, "b.cls holds b'dog'; a label is from 0 to 999999"),
        ({"b__png": b"x"}, r"train-000001.tar \(image at byte \d+\) has no label, others have one"),
    ],
)
def test_samples_that_cannot_be_right_are_errors(shards, files, message):
    add(shards / "train-000001.tar", **files)
    with pytest.raises(UserError, match=message):
        ShardSource(str(shards), "data.root")


def test_torn_packed_missing_and_distant_shards_are_errors(shards):
    """The message says which file, and what is accepted."""
    whole = (shards / "train-000001.tar").read_bytes()
    cuts = [whole[:512], whole[: len(whole) // 3], whole[: len(whole) // 512 // 2 * 512]]
    for content in (*cuts, b"", b"not a tar", gzip.compress(whole)):
        (shards / "train-000001.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"train-000001.tar is not a readable tar file without compression"):
            ShardSource(str(shards), "data.root")
    for root, message in {
        str(shards / "train-{000000..000004}.tar"): "train-000003.tar does not exist .2 of 5 are missing",
        "https://example.org/a-{0..3}.tar": "names no tar files on this machine",
        str(shards.parent / "images" / "cat"): "names no tar files on this machine; accepted: a folder",
        "": "data.root='' names no tar files",
    }.items():
        with pytest.raises(UserError, match=message):
            ShardSource(root, "data.root")
