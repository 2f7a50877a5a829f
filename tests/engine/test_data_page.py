"""docs/data.md: its YAML blocks are valid configs, and its table names every kind of images."""

import re
from pathlib import Path

import pytest
import yaml

from engine.config import load_config
from engine.data.config import DataConfig
from engine.data.sources import SOURCES

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_blocks_are_there():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_a_section_of_a_config(block):
    section = yaml.safe_load(block)
    assert section.keys() == {"data"}
    config = load_config(DataConfig, overrides=[f"{key}={value}" for key, value in section["data"].items()])
    assert config.name == section["data"]["name"]


def test_the_table_names_every_kind():
    (table,) = (block for block in PAGE.split("\n\n") if block.startswith("| `data.name` |"))
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows[1:]))) == set(SOURCES)
