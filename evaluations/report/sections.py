"""The parts of a report: each makes HTML from a run, or empty text if it has nothing to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from engine.json_text import to_json
from engine.pipeline import StageLog
from evaluations.metrics.registry import find_metric, headline_metrics, shown, title
from evaluations.report.charts import line_chart
from evaluations.report.curves import curves
from evaluations.report.page import cards, table
from evaluations.report.pictures import codebook, components, reconstructions, samples
from evaluations.report.run_folder import RunFolder
from evaluations.results import forced_mark, scalars_of, steps_title, training_steps


def headline(run: RunFolder) -> str:
    """Shows the most wanted numbers as cards.

    If several results have one, the first counts; probes are told apart.
    """
    order = headline_metrics()
    texts: dict[tuple[str, str], str] = {}
    for name, result in run.results.items():
        for metric, value in scalars_of(result["metrics"]).items():
            if metric in order:
                where = f" ({name})" if metric == "top1" else ""
                texts.setdefault((metric, where), f"{shown(metric, value)}{forced_mark(metric, result)}")

    sorted_keys = sorted(texts, key=lambda key: order.index(key[0]))
    return cards([(texts[metric, where], title(metric) + where) for metric, where in sorted_keys])


def is_drawn(metric: str) -> bool:
    """Whether a metric is drawn over the guidance scale: if it says something about quality."""
    known = find_metric(metric)
    return known is None or known.better is not None


def guidance(run: RunFolder) -> str:
    """Distance and score over the guidance scale, for every search of the run."""
    charts = []
    for name, result in run.results.items():
        rows = result.get("curve", [])
        metrics = {metric for row in rows for metric in row["metrics"] if is_drawn(metric)}
        for metric in sorted(metrics):
            points = [(row["guidance_scale"], row["metrics"][metric]) for row in rows if metric in row["metrics"]]
            mark = forced_mark(metric, result)
            charts.append(line_chart(f"{metric} over the guidance scale{mark}", {name: points}))
    return f'<h2>Guidance</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def probes(run: RunFolder) -> str:
    """Accuracy of linear probes over their learning rates, of those with more than one."""
    series = {}
    for name, result in run.results.items():
        top1_per_lr = result["metrics"].get("top1_per_lr", {})
        points = sorted((math.log10(float(lr)), top1) for lr, top1 in top1_per_lr.items())
        if len(points) > 1:
            series[name] = points
    chart = line_chart("Top-1 over log10 of the base learning rate", series, "fraction")
    return f'<h2>Linear probes</h2><div class="charts">{chart}</div>' if chart else ""


def _result(name: str, result: Mapping[str, Any]) -> str:
    """One result: its metrics, what is missing and why, and the whole file on demand."""
    numbers = scalars_of(result["metrics"]) | result.get("timing", {})
    rows = [[metric, f"{shown(metric, value)}{forced_mark(metric, result)}"] for metric, value in numbers.items()]
    rows += [[steps_title(network), steps] for network, steps in training_steps(result).items()]
    notes = [f"{metric} is missing: {reason}" for metric, reason in result.get("unavailable", {}).items()]
    notes += [f"{metric} should not be trusted: {reason}" for metric, reason in result.get("forced", {}).items()]
    missing = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    protocol = escape(to_json(result, indent=1))
    return (
        f"<h3>{escape(name)}</h3>{table(['metric', ''], rows)}{missing}"
        f"<details><summary>protocol</summary><pre>{protocol}</pre></details>"
    )


def numbers(run: RunFolder) -> str:
    """Every metric with its protocol, what is missing and why, and where the time went."""
    parts = ["<h2>Numbers and how they were measured</h2>"]
    if any("lite0" in metric for result in run.results.values() for metric in result["metrics"]):
        parts.append("<p>frechet_lite0 is a Frechet distance of EfficientNet-Lite0 features. It is not FID.</p>")
    parts += [_result(name, result) for name, result in run.results.items()]

    log = StageLog(run.path)
    if log.stages:
        rows = [[name, f"{stage['seconds']:.0f}"] for name, stage in log.stages.items()]
        parts.append(f"<h3>time</h3>{table(['stage', 'seconds'], rows)}")
    return "".join(parts)


# In the order of the page. A page of several runs has a table of all numbers instead of the last section.
COMPARED_SECTIONS: Sequence[Callable[[RunFolder], str]] = (
    headline, samples, reconstructions, codebook, guidance, probes, components, curves,
)  # fmt: skip
SECTIONS = (*COMPARED_SECTIONS, numbers)
