"""engine/data/identity: a run or an extraction does not go on with other data unless it is told to, and says so."""

import json
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image

import autoregressive.extract_codes
import autoregressive.train
import tokenizer.train
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, json_digest, read_manifest
from engine.data.folders import FolderSource, LooseSource
from engine.data.identity import changes, facts_of, require_same


@pytest.fixture
def images(tmp_path):
    """Classes a and b, eight training images each; two held-out ones each."""
    for split, count in (("train", 8), ("val", 2)):
        tiny.write_images(tmp_path / "images" / split, per_class=count, seed=count, classes=("a", "b"))
    return tmp_path / "images"


def remove_class(train):
    shutil.rmtree(train / "b")


def add_file(train):
    shutil.copy(train / "a" / "000.png", train / "a" / "new.png")


def rename_file(train):
    (train / "a" / "000.png").rename(train / "a" / "0.png")


def replace_file(train):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(train / "b" / "003.png")


CHANGES = {
    remove_class: "16 images then, 8 now; class 'b' is gone (8 images)",
    add_file: "16 images then, 17 now; class 'a' had 8 images, now 9",
    rename_file: "other names of files",
    replace_file: "other sizes of files",
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_named(images, change):
    before = facts_of(FolderSource(images / "train", "data.root"))
    moved = images / "moved"
    shutil.copytree(images / "train", moved)
    assert changes(before, json.loads(json.dumps(facts_of(FolderSource(moved, "data.root"))))) == []
    loose = facts_of(LooseSource(moved, "data.root"))
    change(moved)
    now = facts_of(FolderSource(moved, "data.root"))
    assert "; ".join(changes(before, now)).startswith(CHANGES[change]) and changes(now, now) == []
    assert changes(loose, facts_of(LooseSource(moved, "data.root")))


def run_flags(images, run, steps, *more):
    config = images / "tokenizer.yaml"
    config.write_text(tiny.TOKENIZER)
    return ["--config", config, *tiny.folder_data(images), f"loop.run_dir={run}", f"loop.steps={steps}", *more]


def test_a_run_goes_on_with_other_data_only_by_option(images, tmp_path, entry):
    """Refused with the change, then accepted, said in the log, and the data of the next checkpoint."""
    run = tmp_path / "run"
    assert entry(tokenizer.train.main, *run_flags(images, run, 2))[0] == 0
    add_file(images / "train")
    code, _, err = entry(tokenizer.train.main, *run_flags(images, run, 4))
    said = "train: 16 images then, 17 now; train: class 'a' had 8 images, now 9"
    assert code == 2 and said in err and "data.accept_changed=true" in err and "Traceback" not in err
    assert len(checkpoint_folders(run)) == 1

    code, _, err = entry(tokenizer.train.main, *run_flags(images, run, 4, "data.accept_changed=true"))
    assert code == 0 and said in err and "accepted (data.accept_changed=true)" in err
    assert entry(tokenizer.train.main, *run_flags(images, run, 6))[0] == 0, "the checkpoint knows the new data"

    # Held-out images are part of the data.
    shutil.copy(images / "val" / "b" / "000.png", images / "val" / "b" / "new.png")
    code, _, err = entry(tokenizer.train.main, *run_flags(images, run, 8))
    assert code == 2 and "val: 4 images then, 5 now" in err

    # A split that is gone, or new, is said.
    code, _, err = entry(tokenizer.train.main, *run_flags(images, run, 6), "data.val_root=")
    assert code == 0 and "had val images, this run names none: not compared" in err

    # A checkpoint of an older version goes on, and says that nothing was compared.
    path = checkpoint_folders(run)[-1] / "manifest.json"
    manifest = {key: value for key, value in read_manifest(path.parent).items() if key != "data"}
    path.write_text(json.dumps(manifest | {"digest": json_digest(manifest)}))
    code, _, err = entry(tokenizer.train.main, *run_flags(images, run, 8))
    assert code == 0 and "does not say which data it was trained on: not compared" in err


def test_a_split_that_only_one_side_has_is_said(caplog):
    """And the other split is compared all the same."""
    facts = {"images": 2, "classes": {"a": 2}}
    require_same({"train": facts, "val": facts}, {"train": facts}, "ck", accept=False)
    require_same({"train": facts}, {"train": facts, "val": facts}, "ck", accept=False)
    assert [record.getMessage() for record in caplog.records] == [
        "ck had val images, this run names none: not compared",
        "ck had no val images, this run has: not compared",
    ]
    with pytest.raises(CheckpointError, match="train: 2 images then, 3 now"):
        require_same({"train": facts, "val": facts}, {"train": {"images": 3, "classes": {"a": 3}}}, "ck", False)


def test_phases_go_on_with_the_data_of_the_phase_before(images, tmp_path, entry):
    first = "phases=[{steps: 2, lr: 1e-3}]"
    assert entry(tokenizer.train.main, *run_flags(images, tmp_path / "run", 2, first))[0] == 0
    remove_class(images / "train")
    remove_class(images / "val")
    both = "phases=[{steps: 2, lr: 1e-3}, {steps: 2, lr: 1e-4}]"
    code, _, err = entry(tokenizer.train.main, *run_flags(images, tmp_path / "run", 2, both))
    assert code == 2 and "train: class 'b' is gone (8 images)" in err


def test_codes_and_what_is_trained_on_them(images, tmp_path, entry):
    """A finished extraction of other images is refused, and so is a generator whose codes changed."""
    run, codes, gpt = (tmp_path / name for name in ("tokenizer", "codes", "gpt"))
    assert entry(tokenizer.train.main, *run_flags(images, run, 2))[0] == 0
    extract = ["--vq-ckpt", run, "--code-path", codes, "--device", "cpu"]
    assert entry(autoregressive.extract_codes.main, *extract)[0] == 0
    config = images / "gpt.yaml"
    config.write_text(tiny.GPT)
    flags = ["--config", config, f"data.codes={codes}", f"data.tokenizer={run}", f"loop.run_dir={gpt}"]
    assert entry(autoregressive.train.main, *flags, "loop.steps=2")[0] == 0

    code, _, err = entry(autoregressive.extract_codes.main, *extract)
    assert code == 0 and "16 images are already there" in err
    rename_file(images / "train")
    code, _, err = entry(autoregressive.extract_codes.main, *extract)
    assert code == 2 and "holds other codes (other names of files); use another --code-path" in err

    # Other labels, or other codes, under the generator.
    for name, change in (("labels.npy", lambda array: 1 - array), ("codes.npy", lambda array: (array + 1) % 16)):
        original = np.load(codes / "train" / name)
        np.save(codes / "train" / name, change(original))
        code, _, err = entry(autoregressive.train.main, *flags, "loop.steps=4")
        assert code == 2 and f"train: other {name.removesuffix('.npy')}" in err
        code, _, err = entry(autoregressive.train.main, *flags, "loop.steps=2", "data.accept_changed=true")
        assert code == 0 and "accepted (data.accept_changed=true)" in err
        np.save(codes / "train" / name, original)
    assert entry(autoregressive.train.main, *flags, "loop.steps=4")[0] == 0
