"""Updates the tables of recipes in README.md and docs/, and sizes in headers: `python tests/recipes_table.py`.

A table stands between `<!-- table NAME -->` and `<!-- end of table -->`. Its content comes from the YAML files under
configs/: sizes and steps from the configs that they resolve to, and published numbers from lines in their headers (see
evaluations/recipe_headers.py). A recipe whose header does not name its size in the prose gets a line `Parameters`.
"""
# ruff: noqa: E402

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for the call as a script

from recipe_plans import cost_of
from recipes import CONFIGS, kind_of, load, name_of, recipes

from evaluations.recipe_headers import SIZE, Facts, facts_of, header_of, summary_of
from tokenizer.training.checks import network_on_meta
from tokenizer.training.phases import phases_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FAMILIES = (  # in tables of checkpoints
    "vq/", "gpt/GPT_B", "gpt/GPT_X", "llamagen/", "wetok/", "gpt/GPT_wetok",
    "open_magvit2/", "ibq/", "maskgit/", "rar/", "var/",
)  # fmt: skip
RECIPE_COLUMNS = [
    "config", "what it is", "parameters", "batch", "steps", "GPUs", "GB",
    "rFID", "LPIPS", "gFID", "accuracy, %", "numbers from",
]  # fmt: skip
RECIPE_TABLES = {  # table -> pattern of its YAML files under configs/
    "recipes-vq": "vq/*.yaml",
    "recipes-vq-ablation": "vq/ablation/*.yaml",
    "recipes-gpt": "gpt/*.yaml",
    "recipes-llamagen-vq": "llamagen/VQ_*.yaml",
    "recipes-llamagen-gpt": "llamagen/GPT_*.yaml",
    "recipes-wetok": "wetok/*.yaml",
    "recipes-wetok-ablation": "wetok/ablation/*.yaml",
    "recipes-open-magvit2": "open_magvit2/[!A]*.yaml",
    "recipes-ibq": "ibq/[!A]*.yaml",
    "recipes-maskgit": "maskgit/*.yaml",
    "recipes-var": "var/vae_*.yaml",
    "recipes-open-magvit2-gpt": "open_magvit2/AR_*.yaml",
    "recipes-ibq-gpt": "ibq/AR_*.yaml",
    "recipes-rar": "rar/*.yaml",
    "recipes-var-gpt": "var/var_*.yaml",
    "recipes-f16": "f16/*.yaml",
}
TOKENIZER_COLUMNS = ["tokenizer", "config", "parameters", "rFID", "LPIPS", "file"]
GPT_COLUMNS = ["GPT", "codes of", "config", "parameters", "gFID", "accuracy", "file"]
NUMBER_COLUMNS = ("rFID", "LPIPS", "gFID", "accuracy")
MARKED = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


# ------------------------------------------------------------------------------------------------------ recipes
def number_cells(facts: Facts) -> list[str]:
    """rFID, LPIPS, gFID, accuracy and the source, to which all other numbers are added."""
    if not facts.numbers:
        return ["", "", "", "", "-"]
    others = [f"{name} {numbers_text(facts, name)}" for name in facts.numbers if name not in NUMBER_COLUMNS]
    return [*(numbers_text(facts, name) for name in NUMBER_COLUMNS), "; ".join([facts.source, *others])]


def numbers_text(facts: Facts, metric: str) -> str:
    """All numbers of a metric in one cell."""
    values = facts.numbers.get(metric, {})
    has_labels = metric != "accuracy" and (metric == "gFID" or len(values) > 1)  # labels stand beside the gFID
    return "; ".join(f"{label} {value}".strip() if has_labels else value for label, value in values.items())


def cells_of(path: Path) -> list[str]:
    """The cells of a recipe, in the order of RECIPE_COLUMNS."""
    config, _ = load(path)
    trainings = phases_of(config) if getattr(config, "phases", None) else [config]
    link = f"[{path.stem}](../configs/{name_of(path)})"
    steps = " + ".join(f"{training.loop.steps:,}" for training in trainings)
    sizes = [in_words(size_of(path)), f"{config.data.global_batch_size:,}", steps]
    gigabytes, gpus = cost_of(path)
    return [link, summary_of(path), *sizes, str(gpus), f"{gigabytes:.1f}", *number_cells(facts_of(path))]


def recipe_paths(pattern: str) -> list[Path]:
    """The YAML files of a table: ablations by name, with numbers in their order, others by size."""

    def order(path: Path) -> tuple[int, list[str | int]]:
        name = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]
        return (0 if path.parent.name == "ablation" else size_of(path)), name

    return sorted(CONFIGS.glob(pattern), key=order)


def without_empty_columns(columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns in which no row has a cell."""
    used = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    return [columns[number] for number in used], [[row[number] for number in used] for row in rows]


# ------------------------------------------------------------------------------------------------------ checkpoints
@functools.cache
def size_of(path: Path) -> int:
    """Number of parameters, of a recipe in phases those of the first one."""
    config, network = load(path)
    if getattr(config, "phases", None):
        network = network_on_meta(phases_of(config)[0])
    return sum(parameter.numel() for parameter in network.parameters())


def in_words(count: int) -> str:
    """A number of parameters: 136M, 2.9B."""
    return f"{count / 1e6:.0f}M" if count < 1e9 else f"{count / 1e9:.1f}B"


def released(kind: str) -> list[tuple[Path, int]]:
    """(config, number of parameters) of all with released files: by family, then by size."""

    def order(item: tuple[Path, int]) -> tuple[int, int, str]:
        path, size = item
        family = max(i for i, prefix in enumerate(FAMILIES) if name_of(path).startswith(prefix))
        return family, size, name_of(path)

    paths = [path for path in recipes() if facts_of(path).released and kind_of(path) == kind]
    return sorted([(path, size_of(path)) for path in paths], key=order)


def tokenizer_rows() -> list[list[str]]:
    rows = []
    for path, size in released("tokenizer"):
        facts, config = facts_of(path), f"`configs/{name_of(path)}`"
        for name, file in facts.released:
            rows.append([name, config, in_words(size), facts.value("rFID"), facts.value("LPIPS"), file])
    return rows


def gpt_rows() -> list[list[str]]:
    rows = []
    for path, size in released("gpt"):
        facts, config = facts_of(path), f"`configs/{name_of(path)}`"
        for name, codes, file in facts.released:
            accuracy = facts.value("accuracy", codes)
            numbers = [facts.value("gFID", codes), f"{accuracy} %" if accuracy else ""]
            rows.append([name, codes, config, in_words(size), *numbers, file])
    return rows


# ------------------------------------------------------------------------------------------------------ pages
TABLES: dict[str, tuple[list[str], Callable[[], list[list[str]]]]] = {
    **{
        name: (RECIPE_COLUMNS, lambda pattern=pattern: [cells_of(path) for path in recipe_paths(pattern)])
        for name, pattern in RECIPE_TABLES.items()
    },
    "released-tokenizers": (TOKENIZER_COLUMNS, tokenizer_rows),
    "released-gpts": (GPT_COLUMNS, gpt_rows),
}


def table(name: str) -> str:
    """A table as Markdown. IMGNET_ROOT must be set."""
    columns, make_rows = TABLES[name]
    columns, rows = without_empty_columns(columns, make_rows())
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return head + "".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in row)}|\n" for row in rows)


def with_size(path: Path) -> str:
    """The text of a recipe with its size in the header: in the prose, else in a line before the one with the cost."""
    text = path.read_text(encoding="utf-8")
    if SIZE.search(header_of(path)):
        return text
    line = f"# Parameters: {in_words(size_of(path))}\n"
    return re.sub(r"(# Parameters: .*\n)?(?=# Cost: )", line, text, count=1)


def updated(text: str) -> str:
    """A page with its tables as they should be."""
    return MARKED.sub(lambda marked: f"{marked[1]}{table(marked[2])}{marked[3]}", text)


if __name__ == "__main__":
    os.environ.setdefault("IMGNET_ROOT", "imagenet")
    for pattern in RECIPE_TABLES.values():
        for path in CONFIGS.glob(pattern):
            path.write_text(with_size(path), encoding="utf-8")
    for page in PAGES:
        page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
