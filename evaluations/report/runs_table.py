"""The table of several runs: one row per run with its state, the config keys in which the runs differ, and its numbers.

The runs of a sweep that left no folder, because they failed at once or were not started yet, have a row too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from engine.config import flatten
from engine.config_types import format_value
from engine.run_log import read_metrics
from evaluations.metrics.registry import find_metric, headline_metrics, shown, title
from evaluations.report.curves import Training, trainings_of
from evaluations.report.ending import progress_of, starts_of
from evaluations.report.first_screen import ending_of
from evaluations.report.page import Card, Cell, cards, note_list, section, sortable_table
from evaluations.report.records import RECORDED_VALUES, RecordedValue, newest_values
from evaluations.report.run_folder import RunFolder, config_of
from evaluations.results import forced_mark, scalars_of

MAX_SETTINGS = 12  # columns of config keys
MAX_SAID = 3  # settings of the best run that a card names
MAX_TEXT = 60  # characters of a value of a config

# What a start tells beside the config.
START_FACTS = ("commit", "torch", "device", "processes")

# Keys that name a run, and no property of it.
NAMES_OF_RUNS = ("loop.run_dir", "loop.wandb.name")


@dataclass(frozen=True)
class Row:
    """What the table shows of one run: texts and numbers by the name of their column."""

    name: str
    anchor: str  # the id of the run's own part of the page; empty where it has none
    state: str
    explanation: str  # of the state
    steps: dict[str, int] = field(default_factory=dict)  # network -> finished steps
    settings: dict[str, Any] = field(default_factory=dict)  # `network: config key or fact of the start` -> value
    recorded: dict[str, float] = field(default_factory=dict)  # `network: key of RECORDED_VALUES` -> value
    results: dict[str, float] = field(default_factory=dict)  # metric -> value
    forced: tuple[str, ...] = ()  # metrics that should not be trusted


def prefix_of(network: str) -> str:
    """What stands before the keys of a network."""
    return f"{network}: "


# ------------------------------------------------------------------------------------------------ one run
def row_of(name: str, run: RunFolder, anchor: str) -> Row:
    """What the table shows of a run."""
    ending = ending_of(run)
    row = Row(name, anchor, ending.state, ending.text)
    trainings = [training for training in trainings_of(run) if training.exists]
    for training in trainings:
        prefix = prefix_of(training.title)
        row.steps[training.title] = progress_of(training.folder).step
        row.settings.update({f"{prefix}{key}": value for key, value in settings_of(training).items()})
        newest = newest_values(read_metrics(training.folder))
        row.recorded.update({f"{prefix}{key}": value for key, value in newest.items()})

    # Of several results with the same metric the first counts, as on the cards of a page.
    wanted = headline_metrics()
    forced = []
    for result in run.results.values():
        for metric, value in scalars_of(result["metrics"]).items():
            if metric in wanted and metric not in row.results:
                row.results[metric] = value
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
        values = (
            str((newest.get("git") or {}).get("sha", "unknown"))[:10],
            (newest.get("versions") or {}).get("torch", "unknown"),
            device.get("name") or device.get("type", "unknown"),
            newest.get("processes", 1),
        )
        settings |= dict(zip(START_FACTS, values, strict=True))
    return settings


def planned_rows(sweep: Mapping[str, Any], rows: Sequence[Row]) -> list[Row]:
    """The runs of a sweep (its record, `sweep.json`) that have no row yet: failed at once, or not started."""
    names = {row.name for row in rows}
    networks = networks_of(rows)
    prefix = prefix_of(networks[0]) if networks else ""
    planned = []
    for name, run in sweep.get("runs", {}).items():
        if name not in names:
            state, explanation = ("failed", run["failure"]) if run.get("failure") else ("waiting", "not started yet")
            settings = {f"{prefix}{key}": value for key, value in run.get("values", {}).items()}
            planned.append(Row(name, "", state, explanation, settings=settings))
    return planned


# ------------------------------------------------------------------------------------------------ all runs
def first_screen_of(rows: Sequence[Row]) -> str:
    """How many runs ended in which way, and the best of each validation with the run that has it."""
    states = Counter(row.state for row in rows)
    counts = "".join(f'<span class="badge {state}">{count} {state}</span> ' for state, count in states.most_common())
    settings = differing_settings(rows)

    best = []
    for value, key in recorded_columns(rows):
        number = value.best_of([row.recorded[key] for row in rows if key in row.recorded])
        winners = [row for row in rows if number is not None and row.recorded.get(key) == number]
        if winners and value.is_validation:
            name = f"best {short_name(key.removesuffix(value.key), rows)}{value.full_title}"
            best.append(Card(value.text(number), name, _winner_text(winners, settings)))
    return f'<p class="ending">{counts}</p>{cards(best)}'


def _winner_text(winners: Sequence[Row], settings: Sequence[str]) -> str:
    """Which run has the best value, with the settings that tell it apart and that its name does not say."""
    if len(winners) > 1:
        return f"{len(winners)} runs, {winners[0].name} among them"
    (winner,) = winners
    texts = {heading_of(key, settings): setting_cell(winner.settings.get(key)).text for key in settings}
    said = [
        f"{name} {text}" for name, text in texts.items() if name not in START_FACTS and f"{name}_" not in winner.name
    ]
    return ", ".join([f"run {winner.name}", *said[:MAX_SAID]])


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


def runs_table(rows: Sequence[Row]) -> str:
    """One row per run; a click on a heading sorts."""
    columns: list[tuple[str, list[Cell]]] = [
        ("run", [Cell(row.name, link=row.anchor) for row in rows]),
        ("state", [Cell(row.state, badge=row.state) for row in rows]),
    ]
    settings = differing_settings(rows)
    for key in settings[:MAX_SETTINGS]:
        name = heading_of(key, settings) if len(networks_of(rows)) == 1 else key
        columns.append((name, [setting_cell(row.settings.get(key)) for row in rows]))

    # Steps and numbers.
    for network in networks_of(rows):
        name = short_name(f"{prefix_of(network)}step", rows)
        columns.append((name, [_number_cell(row.steps.get(network), "{:,.0f}".format) for row in rows]))
    columns += _recorded_cells(rows) + _result_cells(rows)
    cells = [list(row_cells) for row_cells in zip(*(cells for _, cells in columns), strict=True)]
    table = sortable_table([name for name, _ in columns], cells)

    # Why those that did not finish did not.
    notes = [f"{row.name}: {row.explanation}" for row in rows if row.state not in ("finished", "waiting")]
    explained = note_list("Not finished:", notes) if notes else ""
    return section("Runs", _explained([short_name(key, rows) for key in settings]) + table + explained, "runs")


def _explained(settings: Sequence[str]) -> str:
    """What the columns are, and in which settings beyond them the runs differ."""
    differ = "The configs of these runs are equal."
    if settings:
        differ = f"The runs differ in {', '.join(settings[:MAX_SETTINGS])}."
    if len(settings) > MAX_SETTINGS:
        differ += f" They also differ in {', '.join(settings[MAX_SETTINGS:])}."
    return f"<p>{escape(differ)} Marked: the best of a column. A click on a heading sorts.</p>"


def setting_cell(value: Any) -> Cell:
    """A value of a config; numbers are sorted as such."""
    if value is None:
        return Cell("")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(f"{value:.6g}" if isinstance(value, float) else str(value), float(value))
    return Cell((value if isinstance(value, str) else format_value(value))[:MAX_TEXT])


def _number_cell(value: float | None, text: Callable[[float], str], is_best: bool = False, mark: str = "") -> Cell:
    return Cell("") if value is None else Cell(f"{text(value)}{mark}", float(value), is_best)


def _recorded_cells(rows: Sequence[Row]) -> list[tuple[str, list[Cell]]]:
    """The newest records of trainings, of all networks."""
    columns = []
    for value, key in recorded_columns(rows):
        best = value.best_of([row.recorded[key] for row in rows if key in row.recorded])
        cells = [
            _number_cell(number, value.text, number is not None and number == best)
            for number in (row.recorded.get(key) for row in rows)
        ]
        columns.append((f"{short_name(key.removesuffix(value.key), rows)}{value.full_title}", cells))
    return columns


def _result_cells(rows: Sequence[Row]) -> list[tuple[str, list[Cell]]]:
    """The headline numbers of results. They are not ranked here: the comparison below knows their protocols."""
    columns = []
    for metric in headline_metrics():
        if any(metric in row.results for row in rows) and find_metric(metric) is not None:
            cells = [
                _number_cell(
                    row.results.get(metric),
                    lambda number, name=metric: shown(name, number),
                    mark=" (forced)" if metric in row.forced else "",
                )
                for row in rows
            ]
            columns.append((title(metric), cells))
    return columns
