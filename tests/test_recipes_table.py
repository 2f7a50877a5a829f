"""docs/recipes.md says what the YAML files say, and their headers, the README and the table agree on every number."""

import functools
import re

import pytest
import recipes_table
from recipes import kind_of, name_of, recipes
from recipes_table import COLUMNS, EXPECTED, FOLDERS, PAGE, ROOT, cells_of, header_of, page

PATHS = [path for folder in FOLDERS for path in recipes(folder)]
NAMED = pytest.mark.parametrize("path", PATHS, ids=name_of)
METRICS = {"rFID": 9, "LPIPS": 10, "gFID": 11, "accuracy": 12}  # -> column
CALL = "run: python tests/recipes_table.py"
load = recipes_table.load = functools.cache(recipes_table.load)  # each config is read once


@pytest.fixture(autouse=True)
def imagenet(monkeypatch):
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")


def number(text: str) -> int:
    return int(text.replace(",", ""))


def decimals(text: str) -> set[str]:
    return set(re.findall(r"\d+\.\d+", text))


def test_the_page_is_what_the_generator_makes():
    assert PAGE.read_text(encoding="utf-8") == page(), CALL


def test_every_recipe_is_in_the_page():
    """Every YAML that trains a tokenizer or a GPT, linked once; not the quick start and the evaluations."""
    trained = [path for path in recipes() if name_of(path).split("/")[0] not in ("quickstart", "eval")]
    linked = re.findall(r"\]\(\.\./configs/(\S+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(trained) > 30 and sorted(linked) == sorted(map(name_of, trained)), f"FOLDERS lacks a folder, or {CALL}"


def test_every_expected_number_has_a_recipe():
    """A renamed YAML would lose its numbers. Folders that are not there are left out."""
    there = tuple(f"{folder}/" for folder in FOLDERS if recipes(folder))
    assert {name for name in EXPECTED if name.startswith(there)} <= {name_of(p).removesuffix(".yaml") for p in PATHS}


@NAMED
def test_published_numbers_agree_with_the_header(path):
    """What the table expects stands in the header, and what the header calls an rFID, ... stands in its column."""
    header, cells = header_of(path), cells_of(path)
    assert len(cells) == len(COLUMNS) and not any("|" in cell for cell in cells)
    assert decimals(" ".join(cells[9:])) <= decimals(header)
    for name, value in re.findall(r"(rFID|LPIPS|gFID|accuracy) (\d+\.\d+)", header):
        assert value in decimals(cells[METRICS[name]]), f"{name} {value}"


@NAMED
def test_the_header_agrees_with_the_config(path):
    """Steps, batch, epochs, warm-up, tokens, codes and millions of parameters that the header states."""
    header, (config, model) = header_of(path), load(path)
    steps, batch, count = config.loop.steps, config.data.global_batch_size, sum(p.numel() for p in model.parameters())
    for stated in re.findall(r"(?<!epochs of )(?<![\d,])([\d,]+) steps at batch (\d+)", header):
        assert stated == (f"{steps:,}", str(batch))
    for epochs, length in re.findall(r"([\d,]+) epochs of ([\d,]+) steps", header):
        of_paper = number(length) == 5000  # then an epoch is 5,000 steps at batch 256
        assert number(epochs) * number(length) * (256 if of_paper else batch) == steps * batch
    for warmup in re.findall(r"warm-up [a-z (]*([\d,]+\d)", header):
        assert number(warmup) == config.optim.warmup_steps
    for tokens, codes in re.findall(r"([\d,]+) tokens of ([\d,]+) codes", header):
        gpt = kind_of(path) == "gpt"
        own = (
            (model.config.num_tokens, model.config.vocab_size)
            if gpt
            else (model.num_tokens, model.quantizer.codebook_size)
        )
        assert (number(tokens), number(codes)) == own
    for value, unit in re.findall(r"\((\d[\d.]*)([MB])\)", header):
        digits = len(value.partition(".")[2])
        assert f"{count / {'M': 1e6, 'B': 1e9}[unit]:.{digits}f}" == value


def test_the_readme_agrees():
    """Each row of its tables of released checkpoints has the numbers that are expected of its config."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Published checkpoints")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ") and "configs/" in row]
    assert len(rows) == 29
    for row in rows:
        cells, name = [c.strip() for c in row.strip("|").split("|")], re.search(r"configs/([\w/]+)\.yaml", row)[1]
        rfid, lpips, gfid, accuracy, _ = (c.strip() for c in EXPECTED[name].split("|"))
        if len(cells) == 6:  # a tokenizer
            assert cells[3:5] == [rfid.partition(";")[0], lpips], row
        else:
            label = f"{cells[1]} {cells[4]}" if name.startswith("gpt/") else cells[4]
            known = zip(gfid.split("; "), accuracy.split("; "), strict=True)
            assert (label, cells[5].removesuffix(" %")) in known, row
