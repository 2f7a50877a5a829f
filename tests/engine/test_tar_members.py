"""engine/data/tar_members: labels and images of tar files are read, or refused by their name; no label is made up."""

import io
import json
import logging
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from engine.data.images import ImageError
from engine.data.shards import ShardSource
from engine.data.sources import summary_of
from engine.messages import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def pack(tmp_path):
    """`pack(name, {member: content})` writes a tar file; a tuple (type, target) is a link; returns the folder."""
    root = tmp_path / "shards"
    root.mkdir()

    def write(name, members):
        with tarfile.open(root / name, "w") as tar:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                if isinstance(content, tuple):
                    info.type, info.linkname = content
                    tar.addfile(info)
                else:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return root

    return write


def values(source) -> list[int]:
    return [int(np.asarray(source.image(i))[0, 0, 0]) for i in range(len(source))]


HARD, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE


def test_links_are_the_files_that_they_lead_to(pack, caplog):
    """Hard and symbolic ones, over other links, forward and backward, also to labels; a circle leads nowhere."""
    root = pack("a.tar", {
        "x/0.png": picture(10), "x/0.cls": b"0", "x/1.png": (HARD, "x/0.png"), "x/1.cls": (HARD, "x/3.cls"),
        "x/2.png": (SYMBOLIC, "../x/1.png"), "x/2.cls": (SYMBOLIC, "0.cls"), "x/3.png": picture(30), "x/3.cls": b"1",
    })  # fmt: skip
    with caplog.at_level(logging.INFO):
        source = ShardSource(root, "data.root")
    assert values(source) == [10, 10, 10, 30] and source.labels.tolist() == [0, 1, 0, 1]
    assert "followed 4 hard or symbolic links" in caplog.text

    pack("a.tar", {"0.png": picture(1), "1.png": (SYMBOLIC, "/elsewhere/1.png"), "2.png": (SYMBOLIC, "3.png"),
                   "3.png": (SYMBOLIC, "2.png")})  # fmt: skip
    with pytest.raises(ImageError, match=r"a\.tar: 1\.png is a link to /elsewhere/1\.png, which the tar file does not"):
        ShardSource(root, "data.root")
    caplog.clear()
    assert values(ShardSource(root, "data.root", skip_broken=True)) == [1]
    assert "left out 3 links that lead nowhere" in caplog.text


@pytest.mark.parametrize("key", ["cls", "label"])
def test_labels_may_stand_in_json(pack, key):
    """Beside a .cls file they do not count; other content of .json files is no label."""
    root = pack("a.tar", {
        "0.png": picture(0), "0.json": json.dumps({"caption": "x", key: 2}).encode(),
        "1.png": picture(1), "1.json": json.dumps({key: 1}).encode(), "1.cls": b"0",
    })  # fmt: skip
    source = ShardSource(root, "data.root")
    assert source.labels.tolist() == [2, 0] and source.class_names == ["0", "1", "2"]
    assert not source.classes_are_named
    pack("a.tar", {"0.png": picture(0), "0.json": json.dumps({key: -1}).encode()})
    with pytest.raises(UserError, match=rf"0\.json has {key}=-1; a label is from 0 to 999999"):
        ShardSource(root, "data.root")


@pytest.mark.parametrize("notes", [b'{"caption": "a cat"}', b"[1]", b"{torn", b'{"label": null}', b"[" * 100_000])
def test_no_label_is_said(pack, caplog, notes):
    root = pack("a.tar", {"0.png": picture(0), "0.json": notes, "1.png": picture(1)})
    source = ShardSource(root, "data.root")
    assert source.class_names == ["all"] and source.labels.tolist() == [0, 0]
    assert "no image has a label (.cls, .json, or a folder per class): all are of one class" in caplog.text


def test_labels_in_json_that_are_no_numbers_are_said(pack, caplog):
    root = pack("a.tar", {"0.png": picture(0), "0.json": b'{"label": "dog"}'})
    assert ShardSource(root, "data.root").class_names == ["all"]
    assert "labels in .json files are not numbers, and were not read: 0.json has label='dog'" in caplog.text


def test_class_folders_in_tar_files_are_classes(pack, caplog):
    """In alphabetical order over all tar files, as in a folder; they come back from the cached index."""
    root = pack("a.tar", {"train/dog/0.png": picture(1), "train/cat/0.png": picture(0)})
    pack("b.tar", {"train/eel/0.png": picture(2), "train/cat/1.png": picture(0)})
    with caplog.at_level(logging.INFO):
        sources = [ShardSource(root, "data.root") for _ in range(2)]
    for source in sources:
        assert source.class_names == ["cat", "dog", "eel"] and source.classes_are_named
        assert values(source) == source.labels.tolist() == [1, 0, 2, 0]
    assert Counter(caplog.messages)[f"{root}: the classes are the 3 folders in the tar files"] == 2


@pytest.mark.parametrize(
    "files",
    [
        {"a.tar": ["x/0.png", "x/1.png"], "b.tar": ["y/0.png"]},  # a folder per tar file keeps them apart
        {"a.tar": ["x/0.png", "1.png"], "b.tar": ["y/0.png"]},  # not equally deep
    ],
)
def test_other_folders_are_no_classes_which_is_said(pack, caplog, files):
    for name, members in files.items():
        root = pack(name, {member: picture(0) for member in members})
    assert ShardSource(root, "data.root").class_names == ["all"]
    assert "all are of one class" in caplog.text


def test_labels_that_begin_at_one_leave_a_class_empty_which_is_said(pack, caplog):
    root = pack("a.tar", {f"{i}{end}": content for i in (1, 2) for end, content in
                          ((".png", picture(i)), (".cls", str(i).encode()))})  # fmt: skip
    source = ShardSource(root, "data.root")
    assert "labels begin at 1, so the classes before it have no image; labels count from 0" in caplog.text
    assert summary_of(source) == "2 training images of 3 classes, 1 of them without an image (such as 0)"


def test_sparse_files_are_refused_by_name(tmp_path):
    """Their bytes do not lie where the header says."""
    content = bytearray(b"\0" * 1536)
    info = tarfile.TarInfo("0.png")
    info.type = tarfile.GNUTYPE_SPARSE
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"0\.png is stored as a sparse file"):
        ShardSource(tmp_path, "data.root")
