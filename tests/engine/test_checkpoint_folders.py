"""engine/checkpoint: which checkpoints stay, which are refused, how weights are found and identified."""

import copy
import json
import logging
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import Thing, entries, flipped_byte, same, steps_of
from torch import nn

from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.weights import find_weights, fingerprint, load_strict, read_weights


# ---------------------------------------------------------------------------------------------- retention
def test_the_last_k_and_every_nth_stay(tmp_path, world):
    thing = Thing(tmp_path / "run", world, keep_last=2, keep_every=40)
    for step in range(10, 130, 10):
        thing.save(step)
    assert steps_of(tmp_path / "run") == [40, 80, 110, 120]


def test_the_newest_stays_whatever_is_asked(tmp_path, world):
    thing = Thing(tmp_path / "run", world, keep_last=0)
    for step in (1, 2, 3):
        thing.save(step)
    assert steps_of(tmp_path / "run") == [3]


def test_only_own_folders_are_removed(thing, tmp_path):
    """A copy under another name, a folder without a manifest, a loose file: all stay. Regression: a copy such as
    step_00000002_best counted as a checkpoint of the run, was resumed from, and was removed.
    """
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder / "step_00000002", folder / "step_00000002_best")
    shutil.copytree(folder / "step_00000002", folder / "best")
    (folder / "step_notes").mkdir()
    (folder / "step_00000001").mkdir()
    (folder / "readme.txt").write_text("mine")
    thing.store.keep_last = 1
    for step in (3, 4, 5):
        thing.save(step)
    kept = {"best", "readme.txt", "step_00000001", "step_00000002_best", "step_00000005", "step_notes"}
    assert set(entries(tmp_path / "run")) == kept


def test_later_checkpoints_of_an_abandoned_future_are_not_removed(thing, tmp_path):
    """A save at step 3 prunes what is older than 3 and never what is newer."""
    thing.store.keep_last = 1
    shutil.copytree(tmp_path / "run/checkpoints/step_00000002", tmp_path / "run/checkpoints/step_00000009")
    manifest = tmp_path / "run/checkpoints/step_00000009/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": 9, "digest": None}))
    thing.save(3)
    assert steps_of(tmp_path / "run") == [3, 9]


# ---------------------------------------------------------------------------------------------- other architectures
def test_a_checkpoint_of_another_architecture_is_refused_by_key(thing, tmp_path, world):
    """The config names the keys that differ, with both values, before any tensor is touched."""
    other = Thing(tmp_path / "run", world, width=8)
    before = other.state()
    with pytest.raises(CheckpointError) as caught:
        other.load()
    for part in ("step_00000002", "another architecture", "model.width: checkpoint 6, now 8", "loop.run_dir"):
        assert part in str(caught.value)
    assert same(before, other.state())
    assert steps_of(tmp_path / "run") == [2]


@pytest.mark.parametrize("change", ["more parts", "no ema to load", "other shape"])
def test_a_state_that_does_not_fit_is_refused_without_a_traceback(thing, tmp_path, world, change):
    """What a config check cannot see is found at loading; the message names the folder and the tensor."""
    thing.store.keep_last = 9
    if change == "no ema to load":
        Thing(tmp_path / "run", world, ema=0).save(5)
    other = Thing(tmp_path / "run", world, width=8 if change == "other shape" else 6)
    other.store.config = thing.config
    if change == "more parts":
        other.parts["discriminator"] = Thing(tmp_path / "b", world).updater
    with pytest.raises(CheckpointError) as caught:
        other.load()
    message = str(caught.value)
    assert "does not fit this run" in message and "Traceback" not in message and len(message) < 600
    assert {"more parts": "discriminator", "no ema to load": "ema", "other shape": "network"}[change] in message


def test_other_changes_of_the_config_are_said_and_allowed(thing, tmp_path, world, caplog):
    other = Thing(tmp_path / "run", world, note="longer")
    with caplog.at_level(logging.INFO):
        assert other.load() == 2
    assert "note: '' -> 'longer'" in caplog.text


def test_load_strict_lists_what_does_not_fit():
    """Missing, unexpected and misshapen tensors: the first six by name, the number of the rest; nothing is loaded."""
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = copy.deepcopy(module.state_dict())
    state = {k: torch.zeros_like(v) for k, v in module.state_dict().items() if k != "1.bias"}
    state |= {"0.weight": torch.zeros(3, 9), "2.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_strict(module, state, "some/file")
    for part in ("some/file", "missing: 1.bias", "unexpected: 2.extra", "0.weight: file has (3, 9), model has (3, 2)"):
        assert part in str(caught.value)
    assert same(dict(before), dict(module.state_dict()))
    with pytest.raises(CheckpointError, match=r"and 3 more"):
        load_strict(module, {f"x{i}": torch.zeros(1) for i in range(5)}, "f")
    load_strict(module, before, "some/file")


# ---------------------------------------------------------------------------------------------- finding weights
def test_find_weights_takes_runs_checkpoints_and_exports(thing, tmp_path):
    """The newest checkpoint of a run, a checkpoint itself, or a bare folder with weights and config."""
    run = tmp_path / "run"
    thing.save(5)
    newest = run / "checkpoints" / "step_00000005"
    assert find_weights(run, "auto", "network").path == newest / "ema.safetensors"
    assert find_weights(run, "model", "network").path == newest / "model.safetensors"
    older = run / "checkpoints" / "step_00000002"
    assert find_weights(str(older), "ema", "network").path == older / "ema.safetensors"
    (tmp_path / "export").mkdir()
    for name in ("model.safetensors", "config.yaml"):
        shutil.copy(newest / name, tmp_path / "export" / name)
    found = find_weights(tmp_path / "export", "auto", "network")
    assert (found.kind, found.stamp) == ("model", {})


def test_find_weights_says_what_is_wrong(thing, tmp_path):
    """Every message names the folder or file and what is accepted."""
    run = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "nowhere", "auto", "tokenizer .*nowhere is not a folder of weights"),
        (run / "checkpoints" / "step_00000002" / "model.safetensors", "auto", "is a file, and a folder is needed"),
        (tmp_path / "empty", "auto", "tokenizer .*empty holds neither model.safetensors nor a finished checkpoint"),
        (run, "best", "weights='best' is not known; choose one of: auto, ema, model"),
    ]
    for path, prefer, message in cases:
        with pytest.raises(CheckpointError, match=message):
            find_weights(path, prefer, "tokenizer")
    flipped_byte(run / "checkpoints" / "step_00000002")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        find_weights(run, "model", "tokenizer")
    (run / "checkpoints" / "step_00000002" / "ema.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no ema\.safetensors; use weights=model"):
        find_weights(run, "ema", "tokenizer")


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04 not this")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read as safetensors"):
        read_weights(tmp_path / "model.safetensors")


def test_the_fingerprint_is_of_values_and_names_only(tmp_path):
    """Equal for a copy, a reload and another order of parameters; different for one changed bit, name or shape."""
    a = nn.ParameterDict({"x": torch.arange(6.0).reshape(2, 3), "y": torch.ones(2)})
    b = nn.Module()
    b.y, b.x = nn.Parameter(torch.ones(2)), nn.Parameter(torch.arange(6.0).reshape(2, 3))
    b.register_buffer("seen", torch.ones(3))
    assert fingerprint(a) == fingerprint(b) == fingerprint(copy.deepcopy(a).requires_grad_(False))
    transposed_storage = nn.ParameterDict({"x": torch.arange(6.0).reshape(2, 3).T.contiguous().T, "y": torch.ones(2)})
    assert fingerprint(transposed_storage) == fingerprint(a)
    renamed = nn.ParameterDict({"x": torch.arange(6.0).reshape(2, 3), "z": torch.ones(2)})
    reshaped = nn.ParameterDict({"x": torch.arange(6.0).reshape(3, 2), "y": torch.ones(2)})
    changed = copy.deepcopy(a)
    with torch.no_grad():
        changed["y"][0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert len({fingerprint(m) for m in (a, renamed, reshaped, changed)}) == 4


def test_the_fingerprint_survives_a_checkpoint(thing, tmp_path, world):
    other = Thing(tmp_path / "elsewhere", world, seed=1)
    load_strict(other.updater.module, read_weights(find_weights(tmp_path / "run", "model", "x").path), "x")
    assert fingerprint(other.updater.module) == fingerprint(thing.updater.module)


def test_the_saved_state_is_torchs_own_format(thing, tmp_path):
    """The state can be read without this project: it is a `torch.distributed.checkpoint`."""
    reader = dcp.FileSystemReader(str(tmp_path / "run" / "checkpoints" / "step_00000002" / "state"))
    assert "network.model.0.weight" in reader.read_metadata().state_dict_metadata
