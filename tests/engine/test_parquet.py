"""engine/data/parquet.py: images in Parquet files, in the same order and with the same pixels as from folders."""

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import engine.index_images
from engine.config import load_config
from engine.data import parquet
from engine.data.config import DataConfig
from engine.data.folders import FolderSource
from engine.data.identity import facts_of
from engine.data.images import ImageError
from engine.data.parquet import ParquetSource
from engine.data.samples import training_item
from engine.data.sources import kind_of, open_source
from engine.data.stream import stream_opener
from engine.messages import UserError
from engine.world import World
from tokenizer.training.config import TokenizerTrainConfig

pyarrow = pytest.importorskip("pyarrow", reason="needs the package pyarrow (extra parquet)")
import pyarrow.parquet as pq  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> FolderSource:
    """Ten images in class folders."""
    tiny.write_images(tmp_path / "images", per_class=5, seed=0)
    return FolderSource(str(tmp_path / "images"), "data.root")


def contents(folder: FolderSource) -> list[bytes]:
    return [path.read_bytes() for path in folder.paths]


def written(root: Path, images: list, labels: list | None, *, files: int = 3, rows: int = 2, **schema) -> Path:
    """A folder of Parquet files with row groups of `rows` images."""
    root.mkdir()
    columns = {"caption": [f"image {i}" for i in range(len(images))], "image": images}
    if labels is not None:
        columns["label"] = labels
    table = pyarrow.table(columns, **schema)
    per_file = -(-len(images) // files)
    for i in range(files):
        path = root / f"train-{i:05d}-of-{files:05d}.parquet"
        pq.write_table(table.slice(i * per_file, per_file), path, row_group_size=rows)
    return root


def pixels(source, index: int) -> np.ndarray:
    return np.asarray(source.image(index))


@pytest.mark.parametrize("nested", [False, True])
def test_it_holds_the_images_and_labels_that_were_written(tmp_path, folder, nested):
    """Of plain bytes, and of structs as Hugging Face's datasets writes them."""
    images = [{"bytes": content, "path": None} if nested else content for content in contents(folder)]
    source = ParquetSource(written(tmp_path / "p", images, folder.labels.tolist()), "data.root")
    assert len(source) == 10 and source.labels.tolist() == folder.labels.tolist()
    for index in np.random.default_rng(0).permutation(10).tolist():
        assert np.array_equal(pixels(source, index), pixels(folder, index))
    assert source.where(5).endswith("train-00001-of-00003.parquet (row 1 of row group 0)")
    assert source.class_names == ["0", "1"] and not source.classes_are_named


def test_training_sees_the_same_samples_as_from_a_folder(tmp_path, folder):
    """Batches are equal, tensor by tensor, read in this process and in loader processes."""
    source = ParquetSource(written(tmp_path / "p", contents(folder), folder.labels.tolist()), "data.root")
    pixels(source, 0)  # a file is open when the loader processes are forked
    loop = load_config(TokenizerTrainConfig, overrides=["loop.seed=5"]).loop
    world = World(0, 1, 0, torch.device("cpu"))
    for workers in (0, 2):
        config = load_config(DataConfig, overrides=["image_size=8", "global_batch_size=4", f"num_workers={workers}"])
        ours, theirs = (
            list(islice(stream_opener(training_item(s, config, 5), len(s), config, loop, world)(0), 4))
            for s in (source, folder)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in b)


def test_names_of_classes(tmp_path, folder):
    """Strings in alphabetical order; integers by the metadata of Hugging Face's datasets; none without a column."""
    names = [folder.class_names[label] for label in folder.labels]
    source = ParquetSource(written(tmp_path / "names", contents(folder), names), "data.root")
    assert source.class_names == folder.class_names and source.labels.tolist() == folder.labels.tolist()
    assert facts_of(source)["classes"] == facts_of(folder)["classes"]

    features = {"info": {"features": {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}}}
    schema = {"metadata": {"huggingface": json.dumps(features)}}
    named = written(tmp_path / "hf", contents(folder), folder.labels.tolist(), **schema)
    assert ParquetSource(named, "data.root").class_names == ["cat", "dog", "owl"]

    plain = ParquetSource(written(tmp_path / "plain", contents(folder), None), "data.root")
    assert plain.class_names == ["all"] and set(plain.labels.tolist()) == {0}


def test_a_config_or_a_path_names_it(tmp_path, folder):
    root = written(tmp_path / "p", contents(folder), folder.labels.tolist())
    one = min(root.iterdir())
    assert kind_of(root) == kind_of(one) == "parquet" and kind_of(tmp_path / "images") == "folder"
    config = load_config(DataConfig, overrides=["name=parquet", f"root={root}", f"val_root={tmp_path / 'images'}"])
    assert len(open_source(config, "train")) == 10 and isinstance(open_source(config, "val"), FolderSource)
    assert len(ParquetSource(one, "data.root")) == 4


def test_labels_are_looked_up_once_and_again_when_a_file_changes(tmp_path, folder, entry, monkeypatch):
    root = written(tmp_path / "p", contents(folder), folder.labels.tolist())
    assert entry(engine.index_images.main, "--data-path", root)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "_build_index", lambda *_: pytest.fail("read again"))
        source = ParquetSource(root, "data.root")
        identity, facts = source.identity(), source.contents()
        assert ParquetSource(root, "data.root").identity() == identity
    sorted(root.iterdir())[-1].unlink()
    fewer = ParquetSource(root, "data.root")
    assert len(fewer) == 8 and fewer.identity() != identity and fewer.contents() != facts


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([1, 2], [0, 1], r"has no column of images; .* it has caption \(string\), image \(int64\), label \(int64\)"),
        ([b"a", b"b"], [0, None], "1 images have no label"),
        ([b"a", b"b"], [0.5, 1.0], r"the column label holds double; accepted: integers, or names"),
        ([b"a", b"b"], [-1, 1], "the column label goes from -1 to 1; accepted: 0 to 999999"),
        ([], [], "no images in 1 Parquet files|has no column of images"),
    ],
)
def test_columns_that_cannot_be_right_are_errors(tmp_path, images, labels, message):
    with pytest.raises(UserError, match=message):
        ParquetSource(written(tmp_path / "p", images, labels, files=1), "data.root")


def test_torn_missing_and_mixed_files_are_errors(tmp_path, folder):
    """The message names the file."""
    root = written(tmp_path / "p", contents(folder), folder.labels.tolist())
    first, second, _ = sorted(root.iterdir())
    whole = second.read_bytes()
    for content in (b"", b"no parquet", whole[: len(whole) // 2]):
        second.write_bytes(content)
        with pytest.raises(UserError, match=rf"{second} is not a readable Parquet file"):
            ParquetSource(root, "data.root")
    pq.write_table(pyarrow.table({"img": contents(folder)[:2]}), second)
    with pytest.raises(UserError, match=rf"{second} has the columns .*'img'.*, {first} has .*'image'"):
        ParquetSource(root, "data.root")
    with pytest.raises(UserError, match="names no Parquet files"):
        ParquetSource(tmp_path / "images", "data.root")


def test_a_broken_image_is_named_and_skipped_only_when_asked(tmp_path, folder):
    images = contents(folder)
    images[3], images[4] = b"no image", None
    source = ParquetSource(written(tmp_path / "p", images, folder.labels.tolist()), "data.root")
    for index in (3, 4):
        with pytest.raises(ImageError, match=r"\.parquet \(row \d of row group \d\) is not a readable image"):
            source.image(index)
    config = load_config(DataConfig, overrides=["image_size=8", "skip_broken=true"])
    item = training_item(source, config, 0)(3, 0)
    assert int(item["skipped_images"]) == 2 and int(item["index"]) == 5


def test_large_row_groups_are_warned_of(tmp_path, folder, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "LARGE_GROUP_BYTES", 10)
    ParquetSource(written(tmp_path / "p", contents(folder), folder.labels.tolist()), "data.root")
    assert "all of which is read for each image; write row groups of 100 images or fewer" in caplog.text


def test_without_the_package_the_error_says_what_to_install(tmp_path, folder, monkeypatch):
    root = written(tmp_path / "p", contents(folder), folder.labels.tolist())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow: bash env_install\.sh --extras parquet"):
        ParquetSource(root, "data.root")
