"""File names of published instructions stand for the recipes that they mean."""

import pytest

from engine.config import load_config, load_sections
from engine.recipe_names import PUBLISHED_NAMES, recipe_file, recipe_files
from tokenizer.loading import TokenizerSections
from tokenizer.training.config import TokenizerTrainConfig


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
@pytest.mark.parametrize("written", ["configs/vq/{}.yaml", "{}.yaml", "{}", "/elsewhere/configs/vq/{}.yaml"])
def test_a_published_name_is_read_as_the_recipe(name, written, monkeypatch, caplog):
    """With its folder or without it; in a training, and where it names the architecture of a published file."""
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    caplog.set_level("INFO", "tokenizers")
    text = written.format(name)
    recipe = recipe_files()[PUBLISHED_NAMES[name]]
    assert load_config(TokenizerTrainConfig, [text]) == load_config(TokenizerTrainConfig, [recipe])
    assert load_sections(TokenizerSections, text) == load_sections(TokenizerSections, recipe)
    assert f"{text} is read as the recipe {PUBLISHED_NAMES[name]}" in caplog.text


def test_a_file_of_that_name_counts_first(tmp_path):
    path = tmp_path / "VQ_BL56.yaml"
    path.write_text("loop: {steps: 3}\n")
    assert recipe_file(path) == path
