"""Lists the recipes that come with the program: what each trains, its size, and the numbers that its authors published.

    python -m evaluations.recipes                         all of them
    python -m evaluations.recipes wetok ablation          those whose name or text has all of these words
    python -m evaluations.recipes --show vq/VQ_SS256      the file of one, to read or to copy
    python -m evaluations.recipes gigatok --json          the same facts for programs

The name of a recipe stands for its file in every `--config` and in `base:` of your own YAML files. The last part alone
is enough where it is unique, but not in `base:`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.cli import entry_parser, run_entry
from engine.json_text import to_json
from engine.messages import UserError
from engine.preflight import Preflight, require
from engine.recipe_names import recipe_file, recipe_files
from engine.yaml_files import read_layers, read_yaml
from evaluations.recipe_headers import Facts, facts_of, summary_of
from evaluations.trainers import trainer_of

# Family by the beginning of the name; the longest that fits counts.
FAMILIES = {
    "vq/": "GigaTok",
    "gpt/": "GigaTok",
    "gpt/GPT_wetok": "WeTok",
    "gpt/MaskGIT": "MaskGIT",
    "gpt/GPT_bits": "BAR",
    "llamagen/": "LlamaGen",
    "wetok/": "WeTok",
    "open_magvit2/": "Open-MAGVIT2",
    "ibq/": "IBQ",
    "maskgit/": "MaskGIT",
    "rar/": "RAR",
    "var/": "VAR",
    "f16/": "quantizers at factor 16",
    "quickstart/": "quick start",
    "own_data/": "own pictures",
    "tiny/": "rehearsal",
    "eval/": "evaluation",
}
HEAD = ("recipe", "family", "trains", "parameters")
LABELS_SHOWN = 2  # published results that are shown; --json has all


@dataclass(frozen=True)
class Recipe:
    """A shipped recipe and what its header says."""

    name: str
    file: Path
    family: str
    module: str  # of the command that trains it
    trains: str
    summary: str
    facts: Facts

    def has_words(self, words: Sequence[str]) -> bool:
        """Whether its name, family, object or summary has each of the words, in any case."""
        text = " ".join((self.name, self.family, self.trains, self.summary)).lower()
        return all(word.lower() in text for word in words)

    def record(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return {**asdict(self), "file": str(self.file), "bases": [name for name, _ in read_layers(self.file)[:-1]]}

    def cells(self) -> tuple[str, ...]:
        """Its row of the table, in the order of HEAD."""
        return self.name, self.family, self.trains, self.facts.parameters or "-"

    def details(self) -> list[str]:
        """The lines below its row: what it is, and its published numbers."""
        numbers = published_text(self.facts)
        return [self.summary, *([f"published: {numbers}"] if numbers else [])]


def published_text(facts: Facts) -> str:
    """The published numbers in a few words, by what they are of; empty where there are none."""
    by_label: dict[str, list[str]] = {}
    for metric, values in facts.numbers.items():
        for label, value in values.items():
            by_label.setdefault(label, []).append(f"{metric} {value}")
    parts = [f"{label}: {', '.join(items)}" if label else ", ".join(items) for label, items in by_label.items()]
    more = len(parts) - LABELS_SHOWN
    return "; ".join([*parts[:LABELS_SHOWN], *([f"{more} more"] if more > 0 else [])])


def family_of(name: str) -> str:
    """The family that a recipe belongs to; empty where no beginning of a name fits."""
    fitting = [beginning for beginning in FAMILIES if name.startswith(beginning)]
    return FAMILIES[max(fitting, key=len)] if fitting else ""


def recipe_of(name: str, file: Path) -> Recipe:
    """Reads one recipe."""
    trainer, _ = trainer_of(read_yaml(file), name)
    return Recipe(name, file, family_of(name), trainer.module, trainer.trains, summary_of(file), facts_of(file))


def table(recipes: Sequence[Recipe]) -> str:
    """The recipes as a table, with details below each row."""
    rows = [HEAD, *(recipe.cells() for recipe in recipes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    details = [[], *(recipe.details() for recipe in recipes)]
    lines = []
    for row, below in zip(rows, details, strict=True):
        lines.append("  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip())
        lines += [f"    {line}" for line in below]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ the entry
def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="list recipes that have each of these words")
    parser.add_argument(
        "--show", metavar="NAME", help="print the file of a recipe; its path goes to the standard error"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list with all facts")
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the recipe that is to be shown."""
    if args.show is not None:
        with preflight.collecting():
            preflight.file(recipe_file(args.show), "--show")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    if args.show is not None:
        file = recipe_file(args.show)
        print(f"{file}:", file=sys.stderr)
        print(file.read_text(encoding="utf-8"), end="")
        return

    recipes = [recipe_of(name, file) for name, file in recipe_files().items()]
    chosen = [recipe for recipe in recipes if recipe.has_words(args.words)]
    if not chosen:
        raise UserError(
            f"no recipe has the words {' '.join(args.words)!r}; without words, all {len(recipes)} are listed"
        )
    if args.json:
        print(to_json([recipe.record() for recipe in chosen], indent=1))
        return
    print(table(chosen))
    print(f"\n{len(chosen)} of {len(recipes)} recipes. Train one: vt train NAME key=value ...; read one: --show NAME")


if __name__ == "__main__":
    run_entry(main)
