"""Results side by side: which metrics they share, which value is best, and in what their protocols differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluations.metrics.registry import find_metric
from evaluations.result_intervals import difference_in, half_width_in
from evaluations.results import (
    PRESET,
    changed_definitions,
    changed_for_all,
    changed_for_some,
    changed_plugins,
    forced_mark,
    scalars_of,
    steps_title,
    training_steps,
)


@dataclass(frozen=True)
class Row:
    """One metric of several results, None where a result does not have it."""

    metric: str
    values: list[float | None]
    half_widths: list[float | None]  # of their 95 % intervals; None where none is known
    marks: list[str]  # one behind each value: empty, or that it was forced
    best: float | None  # None where the results are not ranked by it

    def cells(self) -> list[str]:
        """The values as text with their intervals, with * at the best, and a mark at those that were forced."""
        cells = []
        for value, half_width, mark in zip(self.values, self.half_widths, self.marks, strict=True):
            if value is None:
                cells.append("-")
                continue
            interval = "" if half_width is None else f" ± {half_width:.2g}"
            cells.append(f"{value:.5g}{interval}{'*' if value == self.best else ''}{mark}")
        return cells


@dataclass(frozen=True)
class FactRow:
    """A fact about each network that is shown beside the numbers and blocks no ranking."""

    name: str
    texts: list[str]


@dataclass(frozen=True)
class Comparison:
    """A table of metrics, and the differences of protocols because of which parts are not ranked."""

    rows: list[Row]
    differences: list[str]
    forced: list[str]  # which numbers should not be trusted, and why
    facts: list[FactRow]
    presets: list[str]  # which published protocol each result follows, of those that were asked to
    gaps: list[str]  # how far numbers with errors are from those of the first result

    def table(self) -> list[tuple[str, list[str]]]:
        """(name, cells) of every row: the metrics, then the facts."""
        return [(row.metric, row.cells()) for row in self.rows] + [(row.name, row.texts) for row in self.facts]

    def text(self, columns: Sequence[str]) -> str:
        """The table for a terminal, under the names of the results."""
        rows = self.table()
        names = ["metric", *(name for name, _ in rows)]
        cells = [list(columns), *(row_cells for _, row_cells in rows)]
        name_width = max(len(name) for name in names)
        widths = [max(len(cell) for cell in column) + 2 for column in zip(*cells, strict=True)]
        lines = []
        for name, row in zip(names, cells, strict=True):
            padded = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(name.ljust(name_width) + "".join(padded))
        return "\n".join(lines)


def compare(named: Sequence[tuple[str, dict[str, Any]]]) -> Comparison:
    """Compares (name, result) pairs; what is ranked depends on how their protocols differ from the first.

    A metric is ranked only where the best value differs from every other one by more than the 95 % interval of the
    difference. One without an error is shown, and not ranked.
    """
    results = [result for _, result in named]
    protocols = [result["protocol"] for result in results]
    numbers = [scalars_of(result["metrics"]) for result in results]

    # What differs: facts that concern every metric, and facts that concern some.
    names = all_metric_names(numbers)
    differences = [
        f"{name}: {fact}" for name, result in named[1:] for fact in changed_for_all(protocols[0], result["protocol"])
    ]
    changed_sections = {**changed_for_some(protocols), **changed_definitions(results)}
    if any(is_computed_by_plugin(name) for name in names):
        changed_sections["plugins"] = changed_plugins(results)
    all_metrics_may_rank = len(results) > 1 and not differences
    differences += sorted({f"only for some metrics: {f}" for facts in changed_sections.values() for f in facts})

    # One row per metric that any of the results has as a number.
    rows, gaps = [], []
    for metric in names:
        values = [of_result.get(metric) for of_result in numbers]
        half_widths = [half_width_in(result["metrics"], metric) for result in results]
        marks = [forced_mark(metric, result) for result in results]
        may_rank = all_metrics_may_rank and None not in values and not any(marks)
        best = best_value(metric, values, changed_sections) if may_rank else None
        if best is not None:
            gaps += gap_lines(metric, named)
            best = best if is_certain(metric, results, values.index(best)) else None
        rows.append(Row(metric, values, half_widths, marks, best))
    return Comparison(
        rows=rows,
        differences=differences,
        forced=forced_numbers(named),
        facts=step_rows(results),
        presets=followed_presets(named),
        gaps=gaps,
    )


def is_certain(metric: str, results: Sequence[Mapping[str, Any]], best: int) -> bool:
    """Whether the result number `best` differs from every other one by more than the interval of the difference."""
    differences = [
        difference_in(results[best], result, metric) for number, result in enumerate(results) if number != best
    ]
    return all(difference is not None and difference.excludes_zero for difference in differences)


def gap_lines(metric: str, named: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """How far a number with an error is from that of the first result, one line per other result."""
    (first_name, first), *others = named
    lines = []
    for name, result in others:
        difference = difference_in(first, result, metric)
        if difference is None:
            continue
        kind = "paired" if difference.is_paired else "independent"
        outcome = "" if difference.excludes_zero else ": not told apart"
        size = f"{difference.value:+.4g} ± {difference.half_width:.2g}"
        lines.append(f"{metric}: {name} - {first_name} = {size} ({kind}){outcome}")
    return lines


def step_rows(results: Sequence[dict[str, Any]]) -> list[FactRow]:
    """How long the networks of the results were trained; one row per kind of network that any of them names."""
    steps = [training_steps(result) for result in results]
    networks = dict.fromkeys(network for of_result in steps for network in of_result)
    return [FactRow(steps_title(network), [s.get(network, "-") for s in steps]) for network in networks]


def followed_presets(named: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """One line per result that was measured with a preset: its name, and what was changed in it."""
    lines = []
    for name, result in named:
        preset = result["protocol"].get(PRESET)
        if preset is not None:
            changes = "; ".join(preset.get("changed", []))
            lines.append(f"{name}: {preset['name']}{f' ({changes})' if changes else ''}")
    return lines


def forced_numbers(named: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """One line per result and reason: which of its numbers were forced."""
    lines = []
    for name, result in named:
        metrics_of: dict[str, list[str]] = {}
        for metric, reason in result.get("forced", {}).items():
            metrics_of.setdefault(reason, []).append(metric)
        lines += [f"{name}: {', '.join(metrics)}: {reason}" for reason, metrics in metrics_of.items()]
    return lines


def all_metric_names(numbers: Sequence[Mapping[str, float]]) -> list[str]:
    """The metrics that any result has as a number: those of the first in its order, then the others by name."""
    first, *others = numbers
    return [*first, *sorted({name for metrics in others for name in metrics if name not in first})]


def best_value(name: str, values: Sequence[float], changed_sections: Mapping[str, Any]) -> float | None:
    """The best of a metric's values, or None for a metric that is not ranked.

    Those are unknown metrics, metrics that say nothing about a network, and those that depend on something that
    differs: a section of the protocol, or the plug-ins.
    """
    metric = find_metric(name)
    if metric is None or metric.better is None:
        return None
    sections = (*metric.depends_on, "plugins") if metric.is_computed_by_plugin else metric.depends_on
    if any(changed_sections.get(section) for section in (name, *sections)):
        return None
    return min(values) if metric.better == "lower" else max(values)


def is_computed_by_plugin(name: str) -> bool:
    """Whether a number is known to be a metric of a plug-in."""
    metric = find_metric(name)
    return metric is not None and metric.is_computed_by_plugin


def differing_images(paths: list[Path]) -> str | None:
    """How many generated images of two results differ; None unless both kept checksums of as many images."""
    tables = []
    for path in paths:
        arrays = path.with_suffix(".npz")
        if not arrays.is_file():
            return None
        with np.load(arrays, allow_pickle=False) as stored:
            if "checksums" not in stored.files:
                return None
            tables.append(stored["checksums"])

    if len(tables) != 2 or tables[0].shape != tables[1].shape:
        return None
    fraction = np.mean(tables[0] != tables[1])
    return f"{fraction:.2%} of the {len(tables[0])} generated images differ in some pixel"
