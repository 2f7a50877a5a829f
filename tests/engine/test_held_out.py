"""Held-out images of one folder, listed by name (`data.held_out`)."""

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

import tokenizer.train as tokenizer_train
from autoregressive import extract_codes
from autoregressive.codes import CodeStore
from engine.data.config import DataConfig
from engine.data.folders import NAMES_DIGEST, FolderSource
from engine.data.held_out import held_out_text, listable, read_held_out
from engine.data.identity import facts_of
from engine.data.sources import has_split, open_source, survey_source
from engine.messages import ConfigError, UserError
from engine.run_log import read_metrics
from tokenizer.cli import _images

HELD_OUT = ["cat/001.png", "cat/003.png", "dog/000.png"]


@pytest.fixture
def data(tmp_path) -> DataConfig:
    """Two classes of 5 images, three of which are held out."""
    tiny.write_images(tmp_path / "images", 5, seed=0)
    (tmp_path / "held_out.txt").write_bytes(held_out_text(HELD_OUT, ["my held-out images"]))
    return DataConfig(root=str(tmp_path / "images"), held_out=str(tmp_path / "held_out.txt"))


@pytest.mark.parametrize("kind", ["folder", "loose"])
def test_the_splits_are_the_listed_images_and_the_others(data, kind):
    """With the labels of their folders; no image is in both, and no split knows the other's."""
    data = replace(data, name=kind)
    assert has_split(data, "val") and not has_split(replace(data, held_out=""), "val")
    whole = open_source(replace(data, held_out=""), "train")
    train, val = (open_source(data, split) for split in ("train", "val"))
    assert list(val.names) == HELD_OUT
    assert sorted([*train.names, *val.names]) == list(whole.names)
    for source in (train, val):
        assert source.labels.tolist() == [whole.labels[list(whole.names).index(name)] for name in source.names]
        assert source.class_names == whole.class_names
        assert np.array_equal(source.image(0), whole.image(list(whole.names).index(source.names[0])))
    assert len({facts_of(source)["contents"][NAMES_DIGEST] for source in (train, val, whole)}) == 3


def test_the_pre_flight_hands_the_split_on_once(data):
    """What was listed by the pre-flight is not split a second time."""
    assert survey_source(data, "train").num_images == 7
    assert survey_source(data, "val").num_images == 3
    assert (len(open_source(data, "train")), len(open_source(data, "val"))) == (7, 3)


def test_an_index_is_split_too(data, monkeypatch, tmp_path):
    """The facts of a split are the same with an index and without one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    facts = [facts_of(open_source(data, split)) for split in ("train", "val")]
    FolderSource.build_index(data.root, "data.root")
    assert open_source(data, "train").index is not None
    assert [facts_of(open_source(data, split)) for split in ("train", "val")] == facts


def test_a_class_may_have_no_image_of_a_split(data, tmp_path):
    (tmp_path / "held_out.txt").write_text("dog/000.png\n", encoding="utf-8")
    val = open_source(data, "val")
    assert (val.labels.tolist(), val.class_names) == ([1], ["cat", "dog"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"data\.held_out=.* cannot be read: No such file"),
        ("# only a comment\n\n", "names no image"),
        ("cat/001.png\ncat/9.png\n", r"not in .*images: cat/9\.png; put them back, or remove their lines"),
        ("".join(f"{n}\n" for n in "abcde"), "a, b, c and 2 more"),
        ("".join(f"{c}/00{n}.png\n" for c in ("cat", "dog") for n in range(5)), "lists all of the 10 images"),
    ],
)
def test_a_list_that_cannot_be_used_is_explained(data, tmp_path, text, message):
    if text is None:
        (tmp_path / "held_out.txt").unlink()
    else:
        (tmp_path / "held_out.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        open_source(data, "train")


def test_held_out_images_are_named_in_one_way_only(data):
    with pytest.raises(ConfigError, match=r"held_out=.* must be empty where data\.val_root names the held-out images"):
        replace(data, val_root="elsewhere")
    with pytest.raises(UserError, match="is a folder; it names a text file"):
        open_source(replace(data, held_out=data.root), "val")


def test_names_of_any_bytes_come_back(tmp_path):
    """As far as a line can hold them."""
    names = [os.fsdecode(b"a \xe9.png"), " b.png", "#c.png", "d/\u00fc.png"]
    assert all(map(listable, names)) and not any(map(listable, ["a\nb.png", "# c.png", "", "x\u2028y"]))
    (tmp_path / "list.txt").write_bytes(held_out_text(names, ["two", "comments"]))
    assert read_held_out(tmp_path / "list.txt") == names


def test_other_images_of_a_trained_tokenizer_have_no_list(data):
    """--data-path and --val-path name whole folders."""
    tokenizer_data = replace(data, name="loose")
    for paths in ({"data_path": data.root, "val_path": None}, {"data_path": None, "val_path": data.root}):
        args = SimpleNamespace(data=None, skip_broken=False, **paths)
        assert _images(args, tokenizer_data, 8).held_out == ""
    same = SimpleNamespace(data=None, skip_broken=False, data_path=None, val_path=None)
    assert _images(same, tokenizer_data, 8).held_out == data.held_out


def test_training_and_codes_take_the_same_split(data, tmp_path, world, monkeypatch):
    """The tokenizer carries the list; the codes have both splits without any flag."""
    roots = [f"data.root={data.root}", "data.val_root=''", f"data.held_out={data.held_out}"]
    config = tiny.tokenizer_config(tmp_path / "run", tmp_path, *roots, "loop.steps=1", "loop.save_every=1")
    tokenizer_train.train(config, world)
    record = read_metrics(tmp_path / "run")[-1]
    assert {"val/psnr", "val/psnr_mean_color", "val/psnr_shrunken"} <= record.keys()

    codes = tmp_path / "codes"
    flags = ["--vq-ckpt", str(tmp_path / "run"), "--code-path", str(codes), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["extract_codes", *flags])
    extract_codes.main()
    assert [len(CodeStore(codes, split)) for split in ("train", "val")] == [7, 3]
