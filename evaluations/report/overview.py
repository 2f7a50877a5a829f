"""A table of several runs: what was trained, how far it came, and the numbers that a card would show."""

from __future__ import annotations

from collections.abc import Sequence

from engine.run_log import read_metrics
from evaluations.metrics.registry import headline_metrics, shown, title
from evaluations.report.curves import trainings_of
from evaluations.report.page import table
from evaluations.report.run_folder import RunFolder
from evaluations.results import forced_mark, scalars_of

SHOWN_RECORDS = ("loss", "val/loss", "val/psnr", "val/codebook_usage", "val/accuracy")  # the last value of each


def last_values(records: Sequence[dict[str, float]]) -> str:
    """The newest of the records that most trainings have, as text."""
    newest: dict[str, float] = {}
    for record in records:
        newest |= {name: record[name] for name in SHOWN_RECORDS if name in record}
    return "  ".join(f"{name} {newest[name]:.4g}" for name in SHOWN_RECORDS if name in newest)


def training_rows(run: RunFolder) -> list[list[str]]:
    """One row per trained network of a run."""
    rows = []
    for training in trainings_of(run):
        records = read_metrics(training.folder)
        if records:
            rows.append([run.path.name, training.title, f"{records[-1]['step']:,.0f}", last_values(records)])
    return rows


def number_rows(run: RunFolder) -> list[list[str]]:
    """One row per headline number of the results of a run."""
    order = headline_metrics()
    rows = []
    for name, result in run.results.items():
        numbers = scalars_of(result["metrics"])
        rows += [
            [run.path.name, name, title(metric), f"{shown(metric, numbers[metric])}{forced_mark(metric, result)}"]
            for metric in order
            if metric in numbers
        ]
    return rows


def overview(runs: Sequence[RunFolder]) -> str:
    """All networks and all headline numbers of the runs."""
    trainings = [row for run in runs for row in training_rows(run)]
    numbers = [row for run in runs for row in number_rows(run)]
    parts = ["<h2>Overview</h2>"]
    if trainings:
        parts.append(table(["run", "network", "step", "newest records"], trainings))
    if numbers:
        parts.append(table(["run", "result", "metric", ""], numbers))
    return "".join(parts)
