"""Updates the tables of recipes in README.md and docs/: `python tests/recipes_table.py`.

A table stands between `<!-- table NAME -->` and `<!-- end of table -->`. All of it comes from the YAML files under
configs/: sizes, losses and schedules from what they resolve to, and published numbers from lines of their headers:

    # Published: rFID 1.01, LPIPS 0.2226            numbers of the authors; (LABEL) says what they are of, where there
    # Published (stage 2): rFID 3.90                are several
    # Source: GigaTok README, S-S                   where they stand
    # Released: S-S | [file.pt](https://...)        a checkpoint: name, for a GPT whose codes, file
"""
# ruff: noqa: E402

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for the call as a script

from recipes import kind_of, load, name_of, recipes

from engine.config import flatten
from tokenizer.training.checks import network_on_meta, terms_of
from tokenizer.training.phases import phases_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("vq", "gpt", "llamagen", "wetok")  # under configs/, each with a table of its recipes
FAMILIES = ("vq/", "gpt/GPT_B", "gpt/GPT_X", "llamagen/", "wetok/", "gpt/GPT_wetok")  # in tables of checkpoints
RECIPE_COLUMNS = [
    "config", "what it is", "loss terms", "teacher", "options that differ", "optimizer", "batch", "steps", "epochs",
    "rFID", "LPIPS", "gFID", "accuracy, %", "source of the numbers",
]  # fmt: skip
TOKENIZER_COLUMNS = ["tokenizer", "config", "parameters", "rFID", "LPIPS", "file"]
GPT_COLUMNS = ["GPT", "codes of", "config", "parameters", "gFID", "accuracy", "file"]
NUMBER_COLUMNS = ("rFID", "LPIPS", "gFID", "accuracy")
MARKED = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


# ------------------------------------------------------------------------------------------------------ headers
@dataclass
class Facts:
    """What the header of a YAML says of published numbers and files."""

    numbers: dict[str, dict[str, str]] = field(default_factory=dict)  # metric -> {label: value}
    source: str = ""
    released: list[list[str]] = field(default_factory=list)

    def cells(self) -> list[str]:
        """rFID, LPIPS, gFID, accuracy and the source, to which all other numbers are added."""
        if not self.numbers:
            return ["", "", "", "", "no number is published"]
        others = [f"{name} {self._text(name)}" for name in self.numbers if name not in NUMBER_COLUMNS]
        return [*(self._text(name) for name in NUMBER_COLUMNS), "; ".join([self.source, *others])]

    def value(self, metric: str, label: str = "") -> str:
        """One number; that without a label where there is none of `label`."""
        values = self.numbers.get(metric, {})
        return values.get(label, values.get("", ""))

    def _text(self, metric: str) -> str:
        values = self.numbers.get(metric, {})
        has_labels = metric != "accuracy" and (metric == "gFID" or len(values) > 1)  # labels stand beside the gFID
        return "; ".join(f"{label} {value}".strip() if has_labels else value for label, value in values.items())


def header_lines(path: Path) -> list[str]:
    """The comment on top of a YAML file; lines that are indented belong to those above."""
    comment = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))[0]
    return re.sub(r"\n# {3,}", " ", comment).replace("# ", "").splitlines()


def header_of(path: Path) -> str:
    """The comment on top of a YAML file in one line, without the facts for the tables."""
    return " ".join(line for line in header_lines(path) if not re.match(r"(Published|Source|Released)\b.*:", line))


def facts_of(path: Path) -> Facts:
    """Reads the lines `Published`, `Source` and `Released`."""
    facts = Facts()
    for line in header_lines(path):
        if published := re.match(r"Published(?: \((.*)\))?: (.*)", line):
            for item in published[2].split(", "):
                metric, _, value = item.rpartition(" ")
                facts.numbers.setdefault(metric, {})[published[1] or ""] = value
        elif line.startswith("Source: "):
            facts.source = line.removeprefix("Source: ")
        elif line.startswith("Released: "):
            facts.released.append([cell.strip() for cell in line.removeprefix("Released: ").split("|")])
    return facts


# ------------------------------------------------------------------------------------------------------ recipes
def listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in options.items())


def terms_cell(config: Any) -> str:
    """Loss terms by the updates in which they count."""
    kinds = {"perceptual": f" ({config.loss.perceptual})", "adversarial": f" ({config.loss.discriminator.name})"}
    windows: dict[str, list[str]] = {}
    for term in terms_of(config, network_on_meta(config)):
        last = term.last + 1  # updates are counted from 1 in tables
        window = f"{term.first + 1:,} to " + ("end" if last >= config.loop.steps else f"{last:,.0f}")
        windows.setdefault(window, []).append(f"{term.name} {term.weight:g}{kinds.get(term.name, '')}")
    return "; ".join(f"{window}: {', '.join(terms)}" for window, terms in windows.items())


def differing(section: Any, skip: tuple[str, ...] = ()) -> str:
    """Every key that is not at its default."""
    default = flatten(type(section)())
    return listed({k: v for k, v in flatten(section).items() if v != default[k] and k not in skip}) or "none"


def optimizer_cell(config: Any, optim: Any) -> str:
    rate = f"{optim.schedule} {optim.lr:g}" + ("" if optim.schedule == "constant" else f" to {optim.end_lr:g}")
    rate += f" in the last {optim.decay_fraction:.0%}" if optim.schedule == "wsd" else ""
    decay = f"decay {optim.weight_decay:g}" + (" of matrices" if optim.decay_params == "matrices" else "")
    rest = f"clip {optim.max_grad_norm:g}" + (f", averaged by {config.ema_decay:g}" if config.ema_decay else "")
    return (
        f"AdamW, betas {optim.betas[0]} and {optim.betas[1]}, {rate}, warm-up {optim.warmup_steps:,}, {decay}, {rest}"
    )


def cells_of(path: Path) -> list[str]:
    """The cells of a recipe, in the order of RECIPE_COLUMNS."""
    config, _ = load(path)
    trainings = phases_of(config) if getattr(config, "phases", None) else [config]
    if kind_of(path) == "gpt":
        generator = config.model.gpt
        terms, teacher, options = ["1 to end: cross entropy 1"], "", differing(generator, skip=("size",))
    else:
        terms, options = [terms_cell(one) for one in trainings], differing(config.model.quantizer)
        block, name = config.model.hybrid.semantic_layer, config.semantic.teacher
        teacher = f"{name}, block {block}" if name else "none"
    link, what = f"[{path.stem}](../configs/{name_of(path)})", re.split(r"\.\s", header_of(path))[0]
    terms_text, optimizers = (
        "<br>".join(dict.fromkeys(c)) for c in (terms, [optimizer_cell(one, one.optim) for one in trainings])
    )
    batch, steps = config.data.global_batch_size, [one.loop.steps for one in trainings]
    run = [f"{batch:,}", " + ".join(f"{n:,}" for n in steps), f"{sum(steps) * batch / (5000 * 256):.4g}"]
    return [link, what, terms_text, teacher, options, optimizers, *run, *facts_of(path).cells()]


def recipe_rows(folder: str) -> list[list[str]]:
    return [cells_of(path) for path in recipes(folder)]


# ------------------------------------------------------------------------------------------------------ checkpoints
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
    **{f"recipes-{folder}": (RECIPE_COLUMNS, lambda folder=folder: recipe_rows(folder)) for folder in FOLDERS},
    "released-tokenizers": (TOKENIZER_COLUMNS, tokenizer_rows),
    "released-gpts": (GPT_COLUMNS, gpt_rows),
}


def table(name: str) -> str:
    """A table as Markdown. IMGNET_ROOT must be set."""
    columns, rows = TABLES[name]
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    return head + "".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in row)}|\n" for row in rows())


def updated(text: str) -> str:
    """A page with its tables as they should be."""
    return MARKED.sub(lambda marked: f"{marked[1]}{table(marked[2])}{marked[3]}", text)


if __name__ == "__main__":
    os.environ.setdefault("IMGNET_ROOT", "imagenet")
    for page in PAGES:
        page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
