"""The page that shows methods side by side (docs/methods.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from evaluations.pipelines.methods import NUMBERS, Measured
from evaluations.pipelines.methods_record import Recorded
from evaluations.pipelines.quickstart import DEFAULT_SYSTEM, RECIPES, SYSTEMS
from evaluations.run_layout import RunLayout

TOKENIZERS = ("bits", "psnr", "usage", "reconstructed", "generated", "agreement", "tokenizer", "generator", "whole")
GENERATORS = ("nats", "generated", "agreement", "passes", "generator", "whole")
HEADER = """# Methods side by side, at the size of the quick start

This page is written by `python -m evaluations.methods`. Each row is a system of the quick start, trained on the
packaged digits with several seeds: mean ± std over the seeds, each of which sets initial weights and the order of
images. One classifier measures all. Seconds and minutes are processor time of one thread: of a training, and of all
stages with measuring, probing and drawing; a machine that is busy with other work changes them little. The runs of the
README had two threads: their sums round otherwise, and they differ from these as another seed does.

**What this can tell, and what not.** These are tiny networks on 4,500 digits of 32 px, trained for minutes. A method
that does not help here may help at full size, and the other way round. "Better" and "worse" name differences from the
plain system that are beyond chance: Welch's t-test over the seeds at 95 %. All others may be chance.
"""


def page_of(methods: Sequence[str], seeds: int, runs: Recorded) -> str:
    """The page in Markdown, of the runs that have ended."""
    measured = {method: Measured.among(runs, method, seeds) for method in methods}
    parts = [HEADER.strip()]
    tokenizers = [method for method in methods if not SYSTEMS[method].base and method != DEFAULT_SYSTEM]
    title = "Tokenizers and their codes, each with a GPT of its own"
    parts += _section(title, DEFAULT_SYSTEM, tokenizers, TOKENIZERS, measured)
    for base in dict.fromkeys(SYSTEMS[method].base for method in methods if SYSTEMS[method].base):
        generators = [method for method in methods if SYSTEMS[method].base == base]
        parts += _section(f"Generators of the codes of {base}", base, generators, GENERATORS, measured)
    missing = [f"{row.method} ({len(row.runs)} of {seeds})" for row in measured.values() if len(row.runs) < seeds]
    if missing:
        parts.append(f"Not all seeds have ended: {', '.join(missing)}.")
    parts += _commits(measured.values())
    return "\n\n".join(parts) + "\n"


def _section(
    title: str, plain: str, methods: Sequence[str], names: Sequence[str], measured: Mapping[str, Measured]
) -> list[str]:
    """A title and its table, a row per method below that of the plain system; empty where none has ended."""
    rows = [measured[method] for method in methods if measured[method].runs]
    if not rows:
        return []
    titles = ["system", "seeds", *(NUMBERS[name].title for name in names), f"against {plain}"]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in (measured[plain], *rows):
        numbers = [row.text(name) for name in names]
        cells = [_name(row.method), str(len(row.runs)), *numbers, _verdict(row, measured[plain], names)]
        lines.append(f"| {' | '.join(cells)} |")
    return [f"## {title}", "\n".join(lines)]


def _commits(rows: Iterable[Measured]) -> list[str]:
    """With which code the runs were trained; nothing where there are none."""
    runs = Counter(run.commit for row in rows for run in row.runs.values())
    named = [f"`{commit[:10]}{commit[40:]}` ({count})" for commit, count in runs.items()]
    return [f"Commits of the code, and the number of runs: {', '.join(named)}."] if named else []


def _name(method: str) -> str:
    """A method with a link to its recipe."""
    if method == DEFAULT_SYSTEM:
        return f"[{method}](../configs/{RECIPES}/tokenizer.yaml), plain"
    layout = RunLayout("")
    recipe = (layout.generator if SYSTEMS[method].base else layout.tokenizer).name
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
