"""What is known of each of several runs: its state, its settings, and its numbers, by the names of their columns.

The runs of a sweep that left no folder, because they failed at once or were not started yet, are known too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.config import flatten
from engine.run_log import read_metrics
from evaluations.metrics.registry import headline_metrics
from evaluations.report.curves import Training, trainings_of
from evaluations.report.ending import progress_of, starts_of
from evaluations.report.first_screen import ending_of
from evaluations.report.networks import network_facts, num_codes
from evaluations.report.number_text import setting_text
from evaluations.report.records import RECORDED_VALUES, RecordedValue, newest_values
from evaluations.report.run_folder import RunFolder, config_of
from evaluations.result_intervals import half_width_in
from evaluations.results import forced_mark, scalars_of

# What a start tells beside the config; the first two say which code computed a run.
CODE_FACTS = ("commit", "torch")
START_FACTS = (*CODE_FACTS, "device", "processes")

# Keys that name a run, and no property of it.
NAMES_OF_RUNS = ("loop.run_dir", "loop.wandb.name")


@dataclass(frozen=True)
class Row:
    """What the table shows of one run: texts and numbers by the name of their column."""

    name: str  # of its folder
    anchor: str  # the id of the run's own part of the page; empty where it has none
    state: str
    explanation: str  # of the state
    label: str = ""  # its name for people, which may be shorter
    steps: dict[str, int] = field(default_factory=dict)  # network -> finished steps
    facts: dict[str, list[str]] = field(default_factory=dict)  # network -> what it is, in words
    num_codes: dict[str, int] = field(default_factory=dict)  # network -> codes of all its codebooks
    settings: dict[str, Any] = field(default_factory=dict)  # `network: config key or fact of the start` -> value
    recorded: dict[str, float] = field(default_factory=dict)  # `network: key of RECORDED_VALUES` -> value
    results: dict[str, float] = field(default_factory=dict)  # metric -> value
    half_widths: dict[str, float] = field(default_factory=dict)  # metric -> half of its 95 % interval, where known
    forced: tuple[str, ...] = ()  # metrics that should not be trusted


def prefix_of(network: str) -> str:
    """What stands before the keys of a network."""
    return f"{network}: "


# ------------------------------------------------------------------------------------------------ one run
def row_of(name: str, run: RunFolder, anchor: str, label: str = "") -> Row:
    """What the table shows of a run."""
    ending = ending_of(run)
    row = Row(name, anchor, ending.state, ending.text, label or name)
    trainings = [training for training in trainings_of(run) if training.exists]
    for training in trainings:
        prefix = prefix_of(training.title)
        row.steps[training.title] = progress_of(training.folder).step
        row.facts[training.title] = network_facts(training)
        row.settings.update({f"{prefix}{key}": value for key, value in settings_of(training).items()})
        newest = newest_values(read_metrics(training.folder))
        row.recorded.update({f"{prefix}{key}": value for key, value in newest.items()})
        if any(value.is_of_codes and value.key in newest for value in RECORDED_VALUES):
            count = num_codes(training)
            row.num_codes.update({training.title: count} if count is not None else {})

    # Of several results with the same metric the first counts, as on the cards of a page.
    wanted = headline_metrics()
    forced = []
    for result in run.results.values():
        for metric, value in scalars_of(result["metrics"]).items():
            if metric in wanted and metric not in row.results:
                row.results[metric] = value
                half_width = half_width_in(result["metrics"], metric)
                row.half_widths.update({metric: half_width} if half_width is not None else {})
                forced += [metric] if forced_mark(metric, result) else []
    return replace(row, forced=tuple(forced))


def settings_of(training: Training) -> dict[str, Any]:
    """The config of a training by dotted key, and what it was started on. Paths into its own run are made equal."""
    config = config_of(training.folder)
    settings = {key: value for key, value in flatten(config).items() if key not in NAMES_OF_RUNS}

    # The run folder, and the folder around it in a pipeline, differ between runs that are otherwise alike.
    run_dir = str((config.get("loop") or {}).get("run_dir") or "")
    around, _, _ = run_dir.rpartition("/")
    for key, value in settings.items():
        if isinstance(value, str) and around and value.startswith(f"{around}/"):
            settings[key] = value.replace(around, "...", 1)

    starts = starts_of(training.folder)
    if starts:
        newest = starts[-1]
        device = newest.get("device") or {}
        git = newest.get("git") or {}
        values = (
            f"{str(git.get('sha', 'unknown'))[:10]}{' with changes' if git.get('dirty') is True else ''}",
            (newest.get("versions") or {}).get("torch", "unknown"),
            device.get("name") or device.get("type", "unknown"),
            newest.get("processes", 1),
        )
        settings |= dict(zip(START_FACTS, values, strict=True))
    return settings


def planned_rows(sweep: Mapping[str, Any], rows: Sequence[Row], labels: Mapping[str, str]) -> list[Row]:
    """The runs of a sweep (its record, `sweep.json`) that have no row yet: failed at once, or not started."""
    names = {row.name for row in rows}
    networks = networks_of(rows)
    prefix = prefix_of(networks[0]) if networks else ""
    planned = []
    for name, run in sweep.get("runs", {}).items():
        if name not in names:
            state, explanation = ("failed", run["failure"]) if run.get("failure") else ("waiting", "not started yet")
            settings = {f"{prefix}{key}": value for key, value in run.get("values", {}).items()}
            planned.append(Row(name, "", state, explanation, labels.get(name, name), settings=settings))
    return planned


# ------------------------------------------------------------------------------------------------ all runs
def recorded_columns(rows: Sequence[Row]) -> list[tuple[RecordedValue, str]]:
    """Which records some of the runs have, as (value, key in `Row.recorded`)."""
    keys = dict.fromkeys(key for row in rows for key in row.recorded)
    return [(value, key) for value in RECORDED_VALUES for key in keys if key.endswith(f": {value.key}")]


def networks_of(rows: Sequence[Row]) -> list[str]:
    """The kinds of networks that the runs have trained."""
    return list(dict.fromkeys(network for row in rows for network in row.steps))


def short_name(key: str, rows: Sequence[Row]) -> str:
    """A key without its network, where all runs are of one kind."""
    networks = networks_of(rows)
    return key.removeprefix(prefix_of(networks[0])) if len(networks) == 1 else key


def heading_of(key: str, keys: Sequence[str]) -> str:
    """The last part of a config key, with the part before it where another of the keys ends in the same."""
    parts = key.rpartition(": ")[2].split(".")
    endings = [other.rpartition(".")[2].rpartition(": ")[2] for other in keys]
    return parts[-1] if endings.count(parts[-1]) == 1 else ".".join(parts[-2:])


def differing_settings(rows: Sequence[Row]) -> list[str]:
    """The settings with several values among the runs that have them, in the order of the configs."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.settings.items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key, different in values.items() if len(different) > 1]


def is_start_fact(key: str) -> bool:
    """Whether a setting is a fact of the start, and none of the config."""
    return key.rpartition(": ")[2] in START_FACTS


def short_labels(sweep: Mapping[str, Any]) -> dict[str, str]:
    """{name of a run of a sweep: what sets it apart}, such as `lr 2e-3, codebook_size 256`.

    Runs that the values alone do not tell apart keep their names.
    """
    values = {name: run.get("values", {}) for name, run in sweep.get("runs", {}).items()}
    keys = dict.fromkeys(key for of_run in values.values() for key in of_run)
    varied = [key for key in keys if len({repr(of_run.get(key)) for of_run in values.values()}) > 1]
    labels = {
        name: ", ".join(f"{heading_of(key, varied)} {setting_text(of_run[key])}" for key in varied if key in of_run)
        for name, of_run in values.items()
    }
    texts = list(labels.values())
    return {name: text if text and texts.count(text) == 1 else name for name, text in labels.items()}
