"""Changed checkpoints give the right weights, or one error: the short form of tests/fuzz/checkpoints.py."""

import pytest
import torch
from fuzz.checkpoints import RIGHT, Fuzz
from safetensors.torch import load_file, save_file

from engine.checkpoint.manifest import CheckpointError, checkpoint_folders
from engine.messages import ConfigError
from tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    return Fuzz(tmp_path_factory.mktemp("fuzz"), seed=20)


@pytest.mark.filterwarnings("ignore")
def test_a_changed_checkpoint_gives_the_right_weights_or_one_error(fuzz):
    for case in range(60):
        fuzz.run(case)
    assert not fuzz.wrong, "\n".join(fuzz.wrong)
    assert sum(fuzz.outcomes.values()) == 60 and any(outcome == RIGHT for _, _, outcome in fuzz.outcomes)


@pytest.mark.filterwarnings("ignore")
def test_the_fuzz_notices_wrong_weights(fuzz, monkeypatch):
    """Otherwise it would show nothing: here every tensor that is read is a little larger."""
    assert all(layout.healthy for layout in fuzz.layouts)
    monkeypatch.setattr("engine.checkpoint.weights.shard_like", lambda value, like: value + 1)
    before = len(fuzz.wrong)
    for case in range(60, 90):
        fuzz.run(case)
        if len(fuzz.wrong) > before:
            break
    assert "weights" in fuzz.wrong.pop()


# ---------------------------------------------------------------------------------------------- what it found
@pytest.mark.parametrize("change", ["scalar", "missing", "empty"])
def test_shapes_that_show_no_architecture_are_named(change, fuzz, tmp_path):
    """Regression: IndexError, KeyError, ZeroDivisionError for a file that is read without a YAML."""
    layout = next(layout for layout in fuzz.layouts if layout.name == "WeTok without a YAML")
    state = dict(layout.content["state_dict"])
    name = "encoder.conv_in.weight"
    state[name] = {"scalar": torch.tensor(1.0), "empty": state[name][:0], "missing": None}[change]
    torch.save({"state_dict": {key: value for key, value in state.items() if value is not None}}, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=rf"does not show its architecture: {name} .*; name its YAML"):
        load_tokenizer(tmp_path / "x.ckpt")


def test_a_changed_config_of_a_checkpoint_is_noticed(fuzz, tmp_path):
    """Regression: only the weights were compared with the manifest, and other heads have the same shapes."""
    folder = checkpoint_folders(fuzz.root / "tokenizer")[-1]
    copy = tmp_path / folder.name
    copy.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    assert load_tokenizer(copy)
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("heads: 2", "heads: 4"))
    with pytest.raises(CheckpointError, match=r"config\.yaml is damaged: its size or hash"):
        load_tokenizer(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        load_tokenizer(copy)


def test_an_export_with_whole_numbers_for_weights_is_refused(fuzz, tmp_path):
    """Regression: they were converted. Without a manifest, nothing else can notice it."""
    folder = checkpoint_folders(fuzz.root / "tokenizer")[-1]
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    state = load_file(folder / "model.safetensors")
    state = {name: (value * 100).to(torch.int8) for name, value in state.items() if "recent" not in name}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="file has int8, model has float32"):
        load_tokenizer(tmp_path)
