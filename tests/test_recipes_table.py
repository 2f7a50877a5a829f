"""The tables of README.md and docs/ say what the YAML files say, and a header agrees with its own config."""

import functools
import re

import pytest
import recipes_table
from recipes import CONFIGS, kind_of, name_of, recipes
from recipes_table import (
    NUMBER_COLUMNS,
    PAGES,
    RECIPE_COLUMNS,
    RECIPE_TABLES,
    TABLES,
    cells_of,
    number_cells,
    updated,
)

from evaluations.recipe_headers import facts_of, header_lines, header_of

PATHS = [path for pattern in RECIPE_TABLES.values() for path in sorted(CONFIGS.glob(pattern))]
NAMED = pytest.mark.parametrize("path", PATHS, ids=name_of)
NOT_PUBLISHED = ("quickstart", "eval", "own_data", "tiny")  # folders of recipes that no paper has
CALL = "run: python tests/recipes_table.py"
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
load = recipes_table.load = functools.cache(recipes_table.load)  # each config is read once


@pytest.fixture(autouse=True)
def imagenet(monkeypatch):
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_tables_are_what_the_generator_makes():
    """On every page; each table stands on one of them."""
    for page, text in TEXTS.items():
        assert text == updated(text), f"{page.name}: {CALL}"
    marked = re.findall(r"<!-- table (\S+) -->", "".join(TEXTS.values()))
    assert sorted(marked) == sorted(TABLES)


def test_every_recipe_is_in_a_table():
    """Every YAML that trains a tokenizer or a GPT, linked once; but those of `NOT_PUBLISHED`."""
    trained = [path for path in recipes() if name_of(path).split("/")[0] not in NOT_PUBLISHED]
    linked = re.findall(r"\]\(\.\./configs/(\S+?)\)", "".join(table for table in map(tables_of, TEXTS.values())))
    assert len(trained) > 30 and sorted(linked) == sorted(map(name_of, trained)), (
        f"RECIPE_TABLES lacks a folder, or {CALL}"
    )


def tables_of(text: str) -> str:
    return "".join(marked[0] for marked in recipes_table.MARKED.finditer(text))


def test_the_generator_reads_headers(tmp_path):
    """Numbers with and without labels, continued lines, files; what is no column is added to the source."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "# A network: 16 tokens. It is small.\n# Published: rFID 1.0, PSNR 20.5\n# Published (B-L (dino)): rFID 2.0\n"
        "# Source: a table,\n#     row 3\n# Released: S-S | [a.pt](https://a)\nmodel: {}\n"
    )
    facts = facts_of(path)
    assert number_cells(facts) == ["1.0; B-L (dino) 2.0", "", "", "", "a table, row 3; PSNR 20.5"]
    assert facts.released == [["S-S", "[a.pt](https://a)"]]
    assert header_of(path) == "A network: 16 tokens. It is small."
    path.write_text("# A network.\nmodel: {}\n")
    assert number_cells(facts_of(path)) == ["", "", "", "", "-"]


@NAMED
def test_numbers_stand_in_the_lines_for_tables_only(path):
    """So that each is written once; every recipe with numbers names their source, and cells hold no column mark."""
    facts, cells = facts_of(path), cells_of(path)
    assert len(cells) == len(RECIPE_COLUMNS) and not any("|" in cell for cell in cells)
    assert bool(facts.numbers) == bool(facts.source)
    is_unknown = "No number of its authors is known here." in header_of(path)
    assert is_unknown == bool(facts.released and not facts.numbers)
    values = [value for values in facts.numbers.values() for value in values.values()]
    assert all(re.fullmatch(r"\d+\.\d+", value) for value in values)
    assert not re.search(rf"({'|'.join(NUMBER_COLUMNS)}|PSNR) \d", header_of(path))
    assert not any(re.match(r"(published|source|released)\b.*:", line) for line in header_lines(path)), (
        "a capital letter"
    )


@NAMED
def test_the_header_names_the_size(path):
    """So that it can be listed without building a network."""
    assert path.read_text(encoding="utf-8") == recipes_table.with_size(path), CALL
    stated = facts_of(path).parameters
    unit = {"M": 1e6, "B": 1e9}[stated[-1]]
    digits = len(stated[:-1].partition(".")[2])
    assert f"{recipes_table.size_of(path) / unit:.{digits}f}" == stated[:-1]


def test_published_numbers_stay():
    """A few of them, of each family, so that a change of the reader of headers cannot lose all unnoticed."""
    by_name = {name_of(path): facts_of(path) for path in PATHS}
    assert sum(bool(facts.numbers) for facts in by_name.values()) == 58
    assert number_cells(by_name["vq/VQ_SS256.yaml"]) == ["1.01", "0.2226", "", "", "GigaTok README, S-S"]
    assert by_name["gpt/GPT_B256.yaml"].value("gFID", "B-L (dino disc)") == "3.33"
    assert number_cells(by_name["llamagen/VQ_16.yaml"])[0] == "2.19; at 384 px 0.94; at 512 px 0.70"
    assert (
        number_cells(by_name["wetok/ablation/generative_decoder.yaml"])[4]
        == "WeTok, table 2; PSNR 20.53; stage 2 20.72"
    )


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
        own = (model.num_tokens, model.codebook_sizes[0]) if gpt else (model.num_tokens, model.quantizer.codebook_size)
        assert (number(tokens), number(codes)) == own
    for value, unit in re.findall(r"\((\d[\d.]*)([MB])\)", header):
        digits = len(value.partition(".")[2])
        assert f"{count / {'M': 1e6, 'B': 1e9}[unit]:.{digits}f}" == value
