"""Indexes of image sets: the same images, labels and identity as a listing; stale or damaged ones are never used."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

import engine.index_images
from engine.config import load_config
from engine.data.base import class_counts
from engine.data.config import DataConfig
from engine.data.folders import FolderSource, LooseSource
from engine.data.identity import facts_of
from engine.data.index_file import Index, IndexDamaged
from engine.data.name_table import NameTable
from engine.data.shards import ShardSource
from engine.data.sources import open_source, summary_of, survey_source
from engine.messages import UserError

NAMES = ["a/0.png", "a/b.jpg", "", "ümläut/ß.png", "odd\udce9.png", "z" * 300]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "visual-tokenizers"


@pytest.fixture
def images(tmp_path) -> Path:
    """Three classes of images, with a hidden file."""
    root = tmp_path / "images"
    tiny.write_images(root, per_class=4, seed=0)
    (root / "cat" / ".hidden.png").touch()
    (root / "odd\udce9").mkdir()
    shutil.copy(next((root / "cat").glob("*.png")), root / "odd\udce9" / "x.png")
    return root


# ---------------------------------------------------------------------------------------------- files
def test_an_index_file_gives_back_what_was_written(tmp_path):
    """Facts and columns of every type, empty ones too, at aligned places, mapped and read-only."""
    columns = {
        "bytes": np.arange(5, dtype=np.uint8),
        "none": np.zeros(0, dtype=np.int64),
        "wide": np.array([-1, 2**62]),
        "short": np.array([7, 8, 9], dtype=np.uint32),
    }
    Index({"names": ["ä", "b"], "count": 3}, columns).save(tmp_path / "new" / "x.index")
    index = Index.open(tmp_path / "new" / "x.index")
    assert index.facts == {"names": ["ä", "b"], "count": 3} and index.columns.keys() == columns.keys()
    for name, column in columns.items():
        assert index.columns[name].dtype == column.dtype and np.array_equal(index.columns[name], column)
        assert not index.columns[name].flags.writeable and index.columns[name].ctypes.data % 64 == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.index"], "no temporary file stays"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "is cut off"),
        (lambda content: content[:20], "is cut off"),
        (lambda content: content[:-1], "is cut off"),
        (lambda content: b"x" * len(content), "is no index of this version"),
        (lambda content: pickle.dumps(content), "is no index of this version"),
        (lambda content: content.replace(b'"count": 3', b'"count": 9'), "has a damaged header"),
        (lambda content: content[:8] + b"\xff" * 8 + content[16:], "is no index of this version"),
    ],
)
def test_a_damaged_index_file_is_named(tmp_path, spoil, message):
    path = tmp_path / "x.index"
    Index({"count": 3}, {"numbers": np.arange(100)}).save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(IndexDamaged, match=rf"{path} {message}"):
        Index.open(path)


def test_a_table_of_names_is_a_sequence_of_them():
    """Any bytes that a file system allows; slices, negative numbers and bounds as of a list."""
    table = NameTable.of(NAMES)
    assert list(table) == NAMES and len(table) == len(NAMES) and table[-1] == NAMES[-1] and table[::2] == NAMES[::2]
    assert list(table.all_encoded()) == [os.fsencode(name) for name in NAMES]
    assert "a/b.jpg" in table and not NameTable.of([])
    for number in (len(NAMES), -len(NAMES) - 1):
        with pytest.raises(IndexError):
            table[number]


def test_counts_of_labels_are_taken_in_pieces(monkeypatch):
    monkeypatch.setattr("engine.data.base.COUNTED_LABELS", 3)
    assert class_counts(np.array([0, 2, 2, 2, 0, 3, 2], dtype=np.int32), 5).tolist() == [2, 0, 4, 1, 0]


# ---------------------------------------------------------------------------------------------- folders
def same(one, other) -> bool:
    """Whether two sources are the same to everything that reads from them."""
    assert [one.path(i) for i in range(len(one))] == [other.path(i) for i in range(len(other))]
    assert one.labels.tolist() == other.labels.tolist() and one.class_names == other.class_names
    assert facts_of(one) == facts_of(other) and summary_of(one) == summary_of(other)
    assert one.identity() == other.identity() and one.version() == other.version()
    return True


@pytest.mark.parametrize(("kind", "name"), [(FolderSource, "folder"), (LooseSource, "loose")])
def test_an_indexed_folder_is_the_same_set_without_being_listed(images, entry, monkeypatch, caplog, kind, name):
    """By the entry, and then by a config, whose survey hands the source on; the log says that it is used."""
    listed = kind(images, "data.root")
    code, _, err = entry(engine.index_images.main, "--data-path", images, "--data", name)
    assert code == 0 and " MB, in " in err
    for function in ("list_folder", "list_below"):
        monkeypatch.setattr(f"engine.data.folders.{function}", lambda *_: pytest.fail("listed"))
    with caplog.at_level("INFO"):
        assert same(kind(images, "data.root"), listed)
    assert f"{len(listed)} images by the index" in caplog.text
    config = load_config(DataConfig, overrides=[f"name={name}", f"root={images}"])
    assert survey_source(config, "train").num_images == len(listed)
    assert same(open_source(config, "train"), listed)
    assert not open_source(config, "train").labels.flags.writeable, "mapped"


def add_file(root: Path) -> None:
    shutil.copy(next((root / "cat").glob("*.png")), root / "cat" / "new.png")


def remove_class(root: Path) -> None:
    shutil.rmtree(root / "dog")


@pytest.mark.parametrize("change", [add_file, remove_class, lambda root: (root / "new").mkdir()])
def test_a_stale_index_is_refused_by_name(images, change, cache):
    """Never used and never passed over in silence; built again, it is fresh."""
    FolderSource.build_index(images, "--data-path")
    for folder in [images, *images.iterdir()]:
        os.utime(folder, ns=(1, folder.stat().st_mtime_ns - 10**9))
    with pytest.raises(UserError, match="is stale"):
        FolderSource(images, "data.root")
    FolderSource.build_index(images, "--data-path")
    FolderSource(images, "data.root")
    change(images)
    (file,) = cache.glob("folder-*.index")
    with pytest.raises(UserError, match=rf"^the index {file} of .*images is stale: .* changed since .* remove it$"):
        FolderSource(images, "data.root")
    if (images / "new").is_dir():
        add_file(images)
        shutil.copy(images / "cat" / "new.png", images / "new" / "x.png")
    FolderSource.build_index(images, "--data-path")
    assert same(FolderSource(images, "data.root"), FolderSource(images, "data.root", use_index=False))


def test_a_source_that_was_surveyed_is_dropped_when_its_index_gets_stale(images):
    """Between the check of a command and its start, minutes may pass."""
    FolderSource.build_index(images, "--data-path")
    config = load_config(DataConfig, overrides=[f"root={images}"])
    survey_source(config, "train")
    add_file(images)
    with pytest.raises(UserError, match="is stale"):
        open_source(config, "train")


def test_an_index_belongs_to_one_place_kind_and_option(images, tmp_path, caplog):
    """Another folder, kind, or skip_broken lists as ever."""
    FolderSource.build_index(images, "--data-path")
    shutil.copytree(images, tmp_path / "copy")
    with caplog.at_level("INFO"):
        FolderSource(tmp_path / "copy", "data.root")
        FolderSource(images, "data.root", skip_broken=True)
        LooseSource(images, "data.root")
        assert "by the index" not in caplog.text
        FolderSource(f"{images}/", "data.root")
    assert "by the index" in caplog.text


def test_a_damaged_index_of_a_folder_is_refused(images, cache):
    FolderSource.build_index(images, "--data-path")
    (file,) = cache.glob("folder-*.index")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(IndexDamaged, match=str(file)):
        FolderSource(images, "data.root")


def test_what_a_listing_refuses_gets_no_index(images, entry, cache):
    """The same message, with the flag; nothing is written."""
    (images / "cat" / "notes.txt").touch()
    code, _, err = entry(engine.index_images.main, "--data-path", images)
    assert code == 2 and "notes.txt is not an image file" in err and not list(cache.glob("*"))
    assert entry(engine.index_images.main, "--data-path", images, "--skip-broken")[0] == 0
    config = load_config(DataConfig, overrides=[f"root={images}", "skip_broken=true"])
    assert len(open_source(config, "train")) == len(
        FolderSource(images, "data.root", skip_broken=True, use_index=False)
    )
    with pytest.raises(UserError, match=r"notes\.txt"):
        open_source(replace(config, skip_broken=False), "train")


# ---------------------------------------------------------------------------------------------- shards
def test_columns_of_shards_are_mapped(images, tmp_path, entry):
    """The places of a billion images are in memory once: loader processes read the pages of the file."""
    shutil.make_archive(str(tmp_path / "shards" / "a"), "tar", images, "cat")
    code, _, err = entry(engine.index_images.main, "--data-path", tmp_path / "shards")
    assert code == 0 and "shards-" in err
    source = ShardSource(str(tmp_path / "shards"), "data.root")
    for column in (source.shards, source.starts, source.sizes):
        assert not column.flags.writeable and not column.flags.owndata
    assert len(source) == 4
