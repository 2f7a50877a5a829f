"""The table of several runs: one row per run with its state, the config keys in which the runs differ, and its numbers;
and above it who leads, as far as that can be said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluations.metrics.registry import find_metric, headline_metrics, title
from evaluations.report.first_screen import network_list
from evaluations.report.networks import network_text
from evaluations.report.number_text import fixed_texts, setting_text
from evaluations.report.page import Card, Cell, cards, note_list, section, sortable_table
from evaluations.report.ranking import SEED_KEY, Standing, code_of_runs, standings_of
from evaluations.report.records import RecordedValue
from evaluations.report.rows import (
    Row,
    differing_settings,
    heading_of,
    is_start_fact,
    networks_of,
    prefix_of,
    recorded_columns,
    short_name,
)
from evaluations.result_intervals import half_width_text
from evaluations.results import FORCED_MARK

MAX_SETTINGS = 12  # columns of config keys
MAX_SAID = 3  # settings of a run that a card names
MAX_CODES = 6  # versions of the code that a warning lists
MAX_RUNS = 4  # runs that a warning names for each of them


# ------------------------------------------------------------------------------------------------ the first screen
def first_screen_of(rows: Sequence[Row]) -> str:
    """What the runs have in common, how many ended in which way, and who leads by each validation."""
    lines = [network_text(network, _common_facts(network, rows)) for network in networks_of(rows)]
    states = Counter(row.state for row in rows)
    counts = "".join(f'<span class="badge {state}">{count} {state}</span> ' for state, count in states.most_common())

    columns = recorded_columns(rows)
    standings = standings_of(columns, rows)
    leaders = [
        _leader_card(value, short_name(key.removesuffix(value.key), rows), standings[key], rows)
        for value, key in columns
        if value.is_validation and key in standings
    ]
    return f'{network_list(lines)}<p class="ending">{counts}</p>{_code_warning(rows)}{cards(leaders)}'


def _common_facts(network: str, rows: Sequence[Row]) -> list[str]:
    """What is true of a network in all runs that have it, in words."""
    first, *others = [row.facts[network] for row in rows if network in row.facts]
    return [fact for fact in first if all(fact in facts for facts in others)]


def _code_warning(rows: Sequence[Row]) -> str:
    """A warning where the runs were computed by different code: their differences may come from it."""
    runs = code_of_runs(rows)
    if len(runs) < 2:
        return ""
    lines = []
    for code, of_code in list(runs.items())[:MAX_CODES]:
        names = [row.label for row in of_code[:MAX_RUNS]]
        more = f" and {len(of_code) - MAX_RUNS} more" if len(of_code) > MAX_RUNS else ""
        lines.append(f"{code}: {'; '.join(names)}{more}")
    if len(runs) > MAX_CODES:
        lines.append(f"and {len(runs) - MAX_CODES} more")
    text = (
        f"Warning: these runs were computed by {len(runs)} different versions of the code, so that their differences "
        "may come from the code. No best run is marked."
    )
    return note_list(text, lines)


def _leader_card(value: RecordedValue, network: str, standing: Standing, rows: Sequence[Row]) -> Card:
    """Who leads by one record, with what is known of the spread."""
    what = "best" if standing.is_best else "highest" if value.better == "higher" else "lowest"
    number, runner_up = value.texts([standing.value, standing.runner_up])
    runs = len(standing.rows)
    said = _leader_text(standing.rows, rows) + (f", mean of {runs} seeds" if runs > 1 else "")
    if standing.spread is None:
        scale = f"next {runner_up}; single runs, no spread known"
    else:
        verdict = "ahead by more than chance" if standing.is_best else "the lead may be chance"
        scale = f"next {runner_up}; standard deviation between seeds {value.texts([standing.spread])[0]}: {verdict}"
    return Card(number, f"{what} {network}{value.full_title}", said, scale)


def _leader_text(leaders: Sequence[Row], rows: Sequence[Row]) -> str:
    """A setting, by its run where it has one, and by the settings that the name of the run does not say."""
    first = leaders[0]
    keys = [key for key in differing_settings(rows) if not is_start_fact(key)]
    said = [
        f"{heading_of(key, keys)} {setting_text(first.settings[key])}"
        for key in keys
        if key in first.settings and not (key.endswith(SEED_KEY) and len(leaders) > 1)
    ]
    if len(leaders) > 1:
        return ", ".join(said[:MAX_SAID]) or "one setting"
    if first.label != first.name:  # it already consists of settings
        return first.label
    return ", ".join([f"run {first.name}", *said[:MAX_SAID]])


# ------------------------------------------------------------------------------------------------ the table
def runs_table(rows: Sequence[Row]) -> str:
    """One row per run; a click on a heading sorts."""
    columns: list[tuple[str, list[Cell]]] = [
        ("run", [Cell(row.label, link=row.anchor) for row in rows]),
        ("state", [Cell(row.state, badge=row.state) for row in rows]),
    ]
    settings = differing_settings(rows)
    for key in settings[:MAX_SETTINGS]:
        name = heading_of(key, settings) if len(networks_of(rows)) == 1 else key
        columns.append((name, [setting_cell(row.settings.get(key)) for row in rows]))

    # Steps and numbers.
    for network in networks_of(rows):
        name = short_name(f"{prefix_of(network)}step", rows)
        steps = [row.steps.get(network) for row in rows]
        columns.append((name, [Cell("") if step is None else Cell(f"{step:,}", float(step)) for step in steps]))
    recorded = recorded_columns(rows)
    standings = standings_of(recorded, rows)
    columns += _recorded_cells(rows, standings) + _result_cells(rows)
    cells = [list(row_cells) for row_cells in zip(*(cells for _, cells in columns), strict=True)]
    table = sortable_table([name for name, _ in columns], cells)

    # What the columns say, and why those that did not finish did not.
    notes = [f"{row.name}: {row.explanation}" for row in rows if row.state not in ("finished", "waiting")]
    explained = note_list("Not finished:", notes) if notes else ""
    about = _explained([short_name(key, rows) for key in settings], _about_marks(rows, standings))
    return section("Runs", about + table + _meanings([value for value, _ in recorded]) + explained, "runs")


def _explained(settings: Sequence[str], about_marks: str) -> str:
    """In which settings the runs differ, those without a column included, and what is marked."""
    differ = "The configs of these runs are equal."
    if settings:
        differ = f"The runs differ in {', '.join(settings[:MAX_SETTINGS])}."
    if len(settings) > MAX_SETTINGS:
        differ += f" They also differ in {', '.join(settings[MAX_SETTINGS:])}."
    return f"<p>{escape(differ)} {escape(about_marks)} A click on a heading sorts.</p>"


def _about_marks(rows: Sequence[Row], standings: Mapping[str, Standing]) -> str:
    """Which cells are marked, or why none is."""
    if len(code_of_runs(rows)) > 1:
        return "No best run is marked, because they were computed by different code."
    if any(standing.is_best for standing in standings.values()):
        return (
            "Marked: settings that lead a column by more than chance (t test at 95 % with the spread between seeds; "
            "not corrected for the number of settings)."
        )
    if any(standing.spread is not None for standing in standings.values()):
        return "No best run is marked: no setting leads by more than the spread between seeds explains."
    if standings:
        return (
            "No best run is marked: these are single runs, so that nobody knows how much runs with other seeds differ "
            "(--grid loop.seed=0,1,2 tells)."
        )
    return "No best run is marked: there are no two finished runs to compare."


def _meanings(values: Sequence[RecordedValue]) -> str:
    """What the recorded columns say, one line each."""
    names = {value.full_title: value.explanation for value in values}
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in names.items())
    return f'<dl class="meanings">{items}</dl>' if items else ""


def setting_cell(value: Any) -> Cell:
    """A value of a config; numbers are sorted as such."""
    if value is None:
        return Cell("")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(setting_text(value), float(value) if is_number else None)


def _number_cells(numbers: Sequence[float | None], texts: Sequence[str], best: Sequence[bool]) -> list[Cell]:
    """Cells of numbers; `texts` are those of the numbers that there are."""
    remaining = iter(texts)
    return [
        Cell("") if number is None else Cell(next(remaining), float(number), is_best)
        for number, is_best in zip(numbers, best, strict=True)
    ]


def _recorded_cells(rows: Sequence[Row], standings: Mapping[str, Standing]) -> list[tuple[str, list[Cell]]]:
    """The newest records of trainings, of all networks; beside a usage of codebooks the number of codes."""
    columns = []
    for value, key in recorded_columns(rows):
        network = key.removesuffix(value.key)
        numbers = [row.recorded.get(key) for row in rows]
        standing = standings.get(key)
        best = [standing is not None and standing.is_best and row in standing.rows for row in rows]
        texts = value.texts([number for number in numbers if number is not None])
        columns.append((f"{short_name(network, rows)}{value.full_title}", _number_cells(numbers, texts, best)))
        if value.is_of_codes and any(row.num_codes for row in rows):
            totals = [row.num_codes.get(network.removesuffix(": ")) for row in rows]
            cells = [_codes_cell(usage, total) for usage, total in zip(numbers, totals, strict=True)]
            columns.append((f"{short_name(network, rows)}codes used", cells))
    return columns


def _codes_cell(usage: float | None, total: int | None) -> Cell:
    """How many codes occurred, of how many."""
    if usage is None or total is None:
        return Cell("")
    count = round(usage * total)
    return Cell(f"{count:,} of {total:,}", float(count))


def _result_cells(rows: Sequence[Row]) -> list[tuple[str, list[Cell]]]:
    """The headline numbers of results, with half of their 95 % intervals where these are known.

    They are not ranked here: the comparison below knows their protocols.
    """
    columns = []
    for metric in headline_metrics():
        known = find_metric(metric)
        if known is None or not any(metric in row.results for row in rows):
            continue
        having = [row for row in rows if metric in row.results]
        values = [row.results[metric] for row in having]
        texts = [f"{value:.1%}" for value in values] if known.percent else fixed_texts(values)
        marked = [_text_of_result(text, metric, row) for text, row in zip(texts, having, strict=True)]
        numbers = [row.results.get(metric) for row in rows]
        columns.append((title(metric), _number_cells(numbers, marked, [False] * len(rows))))
    return columns


def _text_of_result(text: str, metric: str, row: Row) -> str:
    """A number of a result with its interval, and a mark where it was forced."""
    half_width = row.half_widths.get(metric)
    interval = "" if half_width is None else f" ± {half_width_text(metric, half_width)}"
    return f"{text}{interval}{FORCED_MARK if metric in row.forced else ''}"
