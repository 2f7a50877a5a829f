"""engine/aliases.py: old spellings of keys and values are read, and only where the schema has the new ones."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
from omegaconf import OmegaConf

from engine.aliases import current_key, current_manifest, current_result, current_tree
from engine.config import differences, load_config, load_sections, to_yaml
from engine.messages import ConfigError, UserError
from engine.validation import Section, one_of


@dataclass(kw_only=True, slots=True)
class Network:
    """A GPT's own section."""

    width: int | None = None
    num_tokens: int = 16
    codebook_sizes: list[int] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Model:
    """What picks a GPT."""

    name: str = "gpt"
    gpt: Network = field(default_factory=Network)


@dataclass(kw_only=True, slots=True)
class NewRoot(Section):
    """A root config after all renames."""

    model: Model = field(default_factory=Model)
    views: str = "ten-crop"
    form: Literal["a", "b"] = "a"

    def problems(self):
        yield from one_of(self, "views", ("center", "flip", "ten-crop"))


@dataclass(kw_only=True, slots=True)
class OldRoot:
    """A root config whose keys are the old ones, such as that of a classifier."""

    model: Network = field(default_factory=Network)
    views: str = "ten-crop"


def test_old_keys_move_into_the_section_of_the_component(tmp_path):
    """In files, on the command line and in saved configs; what is written has the new names."""
    path = tmp_path / "old.yaml"
    path.write_text("model: {width: 8, streams: [4, 4]}\nviews: centre\n")
    config = load_config(NewRoot, [path], ["model.num_tokens=4"])
    assert (config.model.gpt.width, config.model.gpt.codebook_sizes, config.model.gpt.num_tokens) == (8, [4, 4], 4)
    assert config.views == "center"
    assert load_sections(NewRoot, path).model.gpt.width == 8
    assert "streams" not in to_yaml(config) and "center" in to_yaml(config)
    saved = OmegaConf.create("model: {width: 8, streams: [4, 4], num_tokens: 4}\nviews: centre\nform: a\n")
    assert differences(saved, config) == {}
    assert "streams" in saved.model, "the tree of the caller stays as it is"


def test_an_alias_applies_only_where_the_new_key_exists_and_the_old_does_not():
    tree = OmegaConf.create("model: {width: 8}\nviews: flip\n")
    assert current_tree(OldRoot, tree) == tree
    assert load_config(OldRoot, [], ["model.width=8"]).model.width == 8
    assert load_config(OldRoot, [], ["views=centre"]).views == "centre"
    assert current_key(OldRoot, "model.width") == "model.width"
    assert current_key(NewRoot, "model.width") == "model.gpt.width"
    assert current_key(NewRoot, "model.name") == "model.name"


def test_both_spellings_in_one_source_are_an_error():
    with pytest.raises(ConfigError, match=r"command line: both model\.gpt\.width and model\.width \(its old name\)"):
        load_config(NewRoot, [], ["model.width=8", "model.gpt.width=9"])
    with pytest.raises(UserError, match=r"both codebook_sizes and streams"):
        current_manifest({"streams": [4], "codebook_sizes": [4]})


def test_old_and_new_spelling_in_two_sources_are_one_key(tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text("model: {gpt: {width: 8}}\n")
    assert load_config(NewRoot, [path], ["model.width=9"]).model.gpt.width == 9
    assert load_config(NewRoot, [path], ["model.gpt=null"]).model.gpt.width is None


def test_a_manifest_of_codes_and_a_result_get_present_names():
    assert current_manifest({"streams": [4, 4], "views": "centre", "num_tokens": 1}) == {
        "codebook_sizes": [4, 4],
        "views": "center",
        "num_tokens": 1,
    }
    old = {
        "metrics": {"memorised": 0.5, "rfid": 1.0},
        "protocol": {"crop": "bilinear centre", "train_crop": {"flip_prob": 0.5}, "reference": {"crop": "centre"}},
        "unavailable": {"memorised": "no codes"},
        "curve": [{"memorised": 0.1}],
    }
    assert current_result(old) == {
        "metrics": {"memorized": 0.5, "rfid": 1.0},
        "protocol": {"crop": "bilinear center", "train_crop": {"flip_prob": 0.5}, "reference": {"crop": "center"}},
        "unavailable": {"memorized": "no codes"},
        "curve": [{"memorized": 0.1}],
    }
    assert current_result(current_result(old)) == current_result(old)
