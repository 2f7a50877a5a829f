"""The parts of a report: each makes HTML from a run, or empty text if it has nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from engine.json_text import to_json
from evaluations.metrics.registry import find_metric, title
from evaluations.report.charts import line_chart
from evaluations.report.curves import curves
from evaluations.report.drawn_text import drawn_text
from evaluations.report.lengths import lengths
from evaluations.report.page import details, section, table
from evaluations.report.pictures import codebook, components, reconstructions, samples, training_pictures
from evaluations.report.run_folder import RunFolder
from evaluations.result_intervals import value_text
from evaluations.results import forced_mark, scalars_of, steps_title, training_steps


def is_drawn(metric: str) -> bool:
    """Whether a metric is drawn over the guidance scale: if it says something about quality."""
    known = find_metric(metric)
    return known is None or known.better is not None


def guidance(run: RunFolder) -> str:
    """Distance and score over the guidance scale, for every search of the run."""
    charts = []
    for name, result in run.results.items():
        rows = result.get("curve", [])
        metrics = {metric for row in rows for metric in scalars_of(row["metrics"]) if is_drawn(metric)}
        for metric in sorted(metrics):
            points = [(row["guidance_scale"], row["metrics"][metric]) for row in rows if metric in row["metrics"]]
            mark = forced_mark(metric, result)
            heading = f"{metric} over the guidance scale{mark}"
            charts.append(line_chart(heading, {name: points}, title(metric), "guidance scale"))
    return section("Guidance", f'<div class="charts">{"".join(charts)}</div>' if charts else "", "guidance")


def probes(run: RunFolder) -> str:
    """Accuracy of linear probes over their learning rates, of those with more than one."""
    series = {}
    for name, result in run.results.items():
        top1_per_lr = result["metrics"].get("top1_per_lr", {})
        points = sorted((math.log10(float(lr)), top1) for lr, top1 in top1_per_lr.items())
        if len(points) > 1:
            series[name] = points
    heading = "Top-1 over log10 of the base learning rate"
    chart = line_chart(heading, series, "fraction of images", "log10 of the base learning rate")
    return section("Linear probes", f'<div class="charts">{chart}</div>' if chart else "", "probes")


def _result(result_name: str, result: Mapping[str, Any]) -> str:
    """One result: its metrics, what is missing and why, and the whole file on demand."""
    numbers = scalars_of(result["metrics"]) | result.get("timing", {})
    values = {**result["metrics"], **numbers}
    rows = [[title(metric), f"{value_text(values, metric)}{forced_mark(metric, result)}"] for metric in numbers]
    rows += [[steps_title(network), steps] for network, steps in training_steps(result).items()]
    notes = [f"{metric} is missing: {reason}" for metric, reason in result.get("unavailable", {}).items()]
    notes += [f"{metric} should not be trusted: {reason}" for metric, reason in result.get("forced", {}).items()]
    missing = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    protocol = f"<pre>{escape(to_json(result, indent=1))}</pre>"
    content = table(["metric", ""], rows) + missing + details("protocol: how it was measured", protocol)
    return f"<div><h3>{escape(result_name)}</h3>{content}</div>"


def numbers(run: RunFolder) -> str:
    """Every metric with its protocol, and what is missing and why."""
    results = [_result(name, result) for name, result in run.results.items()]
    return section(
        "All numbers and how they were measured",
        f'<div class="results">{"".join(results)}</div>' if results else "",
        "numbers",
    )


# In the order of the page. A page of several runs compares the numbers and the curves instead of the last two.
COMPARED_SECTIONS: Sequence[Callable[[RunFolder], str]] = (
    samples, reconstructions, lengths, drawn_text, training_pictures, codebook, guidance, probes, components,
)  # fmt: skip
SECTIONS = (*COMPARED_SECTIONS, curves, numbers)
