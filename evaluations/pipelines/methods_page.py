"""The page that shows methods side by side (docs/methods.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluations.pipelines.methods import NUMBERS, Measured, has_tokenizer
from evaluations.pipelines.quickstart import DEFAULT_SYSTEM, RECIPES
from evaluations.run_layout import RunLayout

TOKENIZERS = ("bits", "psnr", "usage", "reconstructed", "generated", "agreement", "tokenizer", "generator")
GENERATORS = ("nats", "generated", "agreement", "passes", "generator")
HEADER = """# Methods side by side, at the size of the quick start

This page is written by `bash scripts/methods.sh`. Each row is a system of the quick start, trained on the packaged
digits with several seeds: mean ± std over the seeds, each of which sets the initial weights and the order of images.
One classifier measures all. Seconds are processor time of the training, of one thread; a machine that is busy with
other work changes them little.

**What this can tell, and what not.** These are tiny networks on 4,500 digits of 32 px, trained for minutes. A method
that does not help here may help at full size, and the other way round. "Better" and "worse" name differences from the
plain system that are beyond chance: Welch's t-test over the seeds at 95 %. All others may be chance.
"""


def page_of(methods: Sequence[str], seeds: int, runs_dir: Path) -> str:
    """The page in Markdown, of the runs that have ended."""
    plain = Measured.among(DEFAULT_SYSTEM, seeds, runs_dir)
    measured = [Measured.among(method, seeds, runs_dir) for method in methods if method != DEFAULT_SYSTEM]
    parts = [HEADER.strip()]
    for title, names, has_own in (
        ("Tokenizers and their codes, each with a GPT of its own", TOKENIZERS, True),
        ("Generators of the same codes", GENERATORS, False),
    ):
        rows = [row for row in measured if row.runs and has_tokenizer(row.method) == has_own]
        if rows:
            parts.append(f"## {title}\n\n{_table(plain, rows, names)}")
    missing = [f"{row.method} ({len(row.runs)} of {seeds})" for row in (plain, *measured) if len(row.runs) < seeds]
    if missing:
        parts.append(f"Not all seeds have ended: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _table(plain: Measured, rows: Sequence[Measured], names: Sequence[str]) -> str:
    """A row per method below that of the plain system."""
    titles = ["system", "seeds", *(NUMBERS[name].title for name in names), "against the plain system"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in (plain, *rows):
        cells = [
            _name(row.method),
            str(len(row.runs)),
            *(row.text(name) for name in names),
            _verdict(row, plain, names),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(method: str) -> str:
    """A method with a link to its recipe."""
    if method == DEFAULT_SYSTEM:
        return f"[{method}](../configs/{RECIPES}/tokenizer.yaml), plain"
    layout = RunLayout("")
    recipe = (layout.tokenizer if has_tokenizer(method) else layout.generator).name
    return f"[{method}](../configs/{RECIPES}/{method}/{recipe}.yaml)"


def _verdict(row: Measured, plain: Measured, names: Sequence[str]) -> str:
    """What is better and what worse than with the plain system."""
    if row is plain:
        return ""
    if min(len(row.runs), len(plain.runs)) < 2:
        return "one seed: not judged"
    verdicts = row.verdicts(plain, names)
    parts = []
    for word, is_better in (("better", True), ("worse", False)):
        titles = [NUMBERS[name].title for name, verdict in verdicts.items() if verdict is is_better]
        parts += [f"{word}: {', '.join(titles)}"] if titles else []
    return "; ".join(parts) or "no difference beyond chance"
