"""engine/data/nested_tar.py: ImageNet's tar file of tar files is the same set as the folder that it unpacks to."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny

import engine.index_images
from engine.config import load_config
from engine.data import nested_tar
from engine.data.config import DataConfig
from engine.data.folders import FolderSource
from engine.data.identity import facts_of
from engine.data.images import ImageError
from engine.data.nested_tar import NestedTarSource
from engine.data.shards import ShardSource
from engine.data.sources import kind_of, open_source
from engine.messages import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, whose files are not written in alphabetical order."""
    root = tmp_path / "images"
    tiny.write_images(root, per_class=5, seed=0)
    return root


def packed(path: Path, folder: Path, extra: dict[str, bytes] | None = None, **inside: bytes) -> Path:
    """The folder as ImageNet is packed, in reverse order: a tar file per class, in one tar file."""
    with tarfile.open(path, "w") as outer:
        for class_folder in sorted((p for p in folder.iterdir() if p.is_dir()), reverse=True):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for file in sorted(class_folder.iterdir(), reverse=True):
                    inner.add(file, file.name)
                for name, content in inside.items():
                    add(inner, name.replace("__", "."), content)
            add(outer, f"{class_folder.name}.tar", buffer.getvalue())
        for name, content in (extra or {}).items():
            add(outer, name, content)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_it_is_the_set_that_it_unpacks_to(folder, tmp_path):
    """The same images, labels, names, identity and facts: a run may go on with one instead of the other."""
    path = packed(tmp_path / "ILSVRC2012_img_train.tar", folder)
    source, unpacked = NestedTarSource(path, "data.root"), FolderSource(folder, "data.root")
    assert len(source) == len(unpacked) == 10 and source.class_names == unpacked.class_names
    assert source.labels.tolist() == unpacked.labels.tolist() and list(source.names) == list(unpacked.names)
    for index in range(10):
        assert np.array_equal(np.asarray(source.image(index)), np.asarray(unpacked.image(index)))
    assert facts_of(source) == facts_of(unpacked) and source.identity() == unpacked.identity()
    assert source.where(0) == f"{path}: {unpacked.names[0]}"


def test_a_config_names_it_and_held_out_images_may_be_a_folder(folder, tmp_path):
    path = packed(tmp_path / "train.tar", folder)
    config = load_config(DataConfig, overrides=["name=nested_tar", f"root={path}", f"val_root={folder}"])
    assert isinstance(open_source(config, "train"), NestedTarSource)
    assert isinstance(open_source(config, "val"), FolderSource)
    black = load_config(DataConfig, overrides=["name=nested_tar", f"root={path}", "background=black"])
    assert open_source(black, "train").identity().endswith(" background=black")


def test_a_path_is_told_apart_from_shards(folder, tmp_path):
    path = packed(tmp_path / "train.tar", folder)
    shutil.make_archive(str(tmp_path / "plain"), "tar", folder)
    assert kind_of(path) == "nested_tar" and kind_of(tmp_path / "plain.tar") == "shards"
    assert len(ShardSource(str(tmp_path / "plain.tar"), "data.root")) == 10


def test_it_is_scanned_once_and_again_when_it_changes(folder, tmp_path, entry, monkeypatch):
    path = packed(tmp_path / "train.tar", folder)
    assert entry(engine.index_images.main, "--data-path", path)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(nested_tar, "_build_index", lambda *_: pytest.fail("scanned again"))
        source = NestedTarSource(path, "data.root")
    assert not source.starts.flags.writeable and source.version() == NestedTarSource(path, "data.root").version()
    next((folder / "cat").iterdir()).unlink()
    packed(path, folder)
    assert len(NestedTarSource(path, "data.root")) == 9


@pytest.mark.parametrize(
    ("extra", "inside", "message"),
    [
        ({"notes.txt": b"x"}, {}, r"train\.tar: notes\.txt is not a tar file of the images of a class"),
        ({}, {"notes__txt": b"x"}, r"train\.tar: dog\.tar: notes\.txt is not an image file"),
    ],
)
def test_what_is_no_image_is_named_or_left_out(folder, tmp_path, extra, inside, message):
    path = packed(tmp_path / "train.tar", folder, extra, **inside)
    with pytest.raises(ImageError, match=message):
        NestedTarSource(path, "data.root")
    assert len(NestedTarSource(path, "data.root", skip_broken=True)) == 10


def test_hidden_names_are_left_out_with_a_count(folder, tmp_path):
    path = packed(tmp_path / "train.tar", folder, {"._cat.tar": b"x"}, ___0__png=b"x")
    source = NestedTarSource(path, "data.root")
    assert len(source) == 10 and source.num_hidden == 1 + 2


def test_torn_and_empty_files_are_errors(folder, tmp_path):
    """The message says which file."""
    path = packed(tmp_path / "train.tar", folder)
    content = path.read_bytes()
    for cut in (content[: len(content) // 3], content[: len(content) // 512 // 2 * 512], b"", b"x" * 600):
        path.write_bytes(cut)
        with pytest.raises(UserError, match=r"train\.tar"):
            NestedTarSource(path, "data.root")
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty\.tar holds no images"):
        NestedTarSource(packed(path, folder), "data.root")
    for root in (tmp_path / "no.tar", folder):
        with pytest.raises(UserError, match="is not a tar file of tar files"):
            NestedTarSource(root, "data.root")
