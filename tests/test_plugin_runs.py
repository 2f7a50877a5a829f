"""A quantizer in a user's file: trained, resumed, loaded, and what is said where its plug-in is not named."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny
from omegaconf import OmegaConf

import autoregressive.extract_codes
import autoregressive.train
import evaluations.reconstruction
import tokenizer.train
from engine import plugins
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.messages import ConfigError
from tokenizer import load_tokenizer
from tokenizer.models.registry import QUANTIZERS

SOURCE = '''
"""FSQ under another name, with a section of its own."""

from dataclasses import dataclass, field

from tokenizer.models.registry import QUANTIZERS
from tokenizer.quantizers.fsq import FSQ, FSQConfig


@dataclass(kw_only=True, slots=True)
class RoundedConfig(FSQConfig):
    """Levels of each channel."""

    levels: list[int] = field(default_factory=lambda: [4, 4])  # few


class Rounded(FSQ):
    """See the module."""

    config_class = RoundedConfig


QUANTIZERS["rounded"] = Rounded
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """What a test loads is forgotten after it."""
    monkeypatch.setattr(plugins, "_loaded", {})
    yield
    QUANTIZERS.pop("rounded", None)
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]


def forget() -> None:
    """As in a new process."""
    plugins._loaded.clear()
    QUANTIZERS.pop("rounded", None)


@pytest.fixture
def plugin(tmp_path) -> Path:
    path = tmp_path / "rounded.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


@pytest.fixture
def command(plugin, tmp_path, image_folder) -> list[str]:
    """A training command whose YAML names the plug-in, relative to itself."""
    recipe = OmegaConf.create(tiny.TOKENIZER)
    recipe.model.quantizer = {"name": "rounded", "rounded": {"levels": [3, 3]}}
    OmegaConf.save(OmegaConf.merge({"plugins": ["rounded.py"]}, recipe), tmp_path / "recipe.yaml")
    data = tiny.folder_data(image_folder)
    workers = ["data.num_workers=1", "loop.steps=2"]
    return ["--config", str(tmp_path / "recipe.yaml"), *data, *workers, f"loop.run_dir={tmp_path / 'run'}"]


def test_a_run_with_a_plugin(plugin, command, tmp_path, entry, image_folder):
    """Trained, with loader processes; stamped; resumed; its codes extracted by an entry that names the plug-in."""
    run, hint = tmp_path / "run", f"add --plugin {plugin}"
    code, _, err = entry(tokenizer.train.main, *command)
    assert code == 0, err
    folder = checkpoint_folders(run)[-1]
    assert list(read_manifest(folder)["stamp"]["plugins"]) == [str(plugin)]
    assert f"{plugin}#sha256=" in (folder / "config.yaml").read_text(encoding="utf-8")
    assert load_tokenizer(run).quantizer.codebook_size == 9

    # A new process does not import it because of the checkpoint, in any entry.
    forget()
    with pytest.raises(ConfigError, match=rf"is not a tokenizer: .*trained with plug-in {plugin} .*{hint} "):
        load_tokenizer(run)
    extract = ["--vq-ckpt", run, "--code-path", tmp_path / "codes", "--device", "cpu"]
    code, _, err = entry(autoregressive.extract_codes.main, *extract)
    assert code == 2 and hint in err
    code, _, err = entry(tokenizer.train.main, "--config", tmp_path / "plain.yaml", *command[2:])
    assert code == 2 and "plain.yaml does not exist" in err
    assert plugins.loaded() == [] and "rounded" not in QUANTIZERS

    code, _, err = entry(autoregressive.extract_codes.main, *extract, "--plugin", plugin)
    assert code == 0, err
    assert json.loads((tmp_path / "codes" / "val" / "manifest.json").read_text())["codebook_size"] == 9

    # A folder of weights without a manifest: its config names the plug-in.
    forget()
    (tmp_path / "exported").mkdir()
    for name in ("config.yaml", "model.safetensors"):
        shutil.copy(folder / name, tmp_path / "exported" / name)
    with pytest.raises(ConfigError, match=hint):
        load_tokenizer(tmp_path / "exported")


def test_a_resume_names_the_plugin_and_tells_a_changed_file(plugin, command, tmp_path, entry):
    code, _, err = entry(tokenizer.train.main, *command)
    assert code == 0, err
    forget()
    plain = OmegaConf.load(tmp_path / "recipe.yaml")
    del plain["plugins"]
    OmegaConf.save(plain, tmp_path / "plain.yaml")
    again = ["--config", tmp_path / "plain.yaml", *command[2:], "loop.steps=3"]
    code, _, err = entry(tokenizer.train.main, *again)
    assert code == 2 and "rounded" in err and f"add --plugin {plugin}" in err

    plugin.write_text(SOURCE + "\n# changed\n", encoding="utf-8")
    code, _, err = entry(tokenizer.train.main, *again, "--plugin", plugin)
    assert code == 0 and "resumed from step 2 of 3" in err
    assert f"plug-in {plugin} changed since the checkpoint: sha256 " in err


def test_a_gpt_on_its_codes_says_so_too(plugin, command, tmp_path, entry):
    """The GPT needs the tokenizer, whose plug-in the message names."""
    assert entry(tokenizer.train.main, *command)[0] == 0
    forget()
    (tmp_path / "gpt.yaml").write_text(tiny.GPT, encoding="utf-8")
    names = [f"data.codes={tmp_path / 'codes'}", f"data.tokenizer={tmp_path / 'run'}"]
    code, _, err = entry(autoregressive.train.main, "--config", tmp_path / "gpt.yaml", *names)
    assert code == 2 and f"add --plugin {plugin}" in err


def test_an_evaluation_tells_a_changed_file_too(plugin, command, tmp_path, entry):
    """As a warning, and in the facts about the network that a result holds; the same file is not told."""
    assert entry(tokenizer.train.main, *command)[0] == 0
    forget()
    output = tmp_path / "result.json"
    flags = ["--vq-ckpt", tmp_path / "run", "--extractor", "none", "--device", "cpu", "--plugin", plugin]
    code, _, err = entry(evaluations.reconstruction.main, *flags, "--output", output)
    assert code == 0 and "changed since the checkpoint" not in err
    assert "changed_plugins" not in json.loads(output.read_text())["protocol"]["tokenizer"]

    forget()
    plugin.write_text(SOURCE + "\n# changed\n", encoding="utf-8")
    code, _, err = entry(evaluations.reconstruction.main, *flags, "--output", tmp_path / "changed.json")
    assert code == 0 and f"plug-in {plugin} changed since the checkpoint: sha256 " in err
    (line,) = json.loads((tmp_path / "changed.json").read_text())["protocol"]["tokenizer"]["changed_plugins"]
    assert str(plugin) in line
