"""The page as a whole: which runs a folder holds, which sections they get, and where the page is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from engine.atomic_file import write_atomic
from engine.counts import counted
from engine.data.sources import attribution_of
from engine.messages import UserError
from evaluations.comparison import compare
from evaluations.report.curves import overlaid_curves, trainings_of
from evaluations.report.ending import date_text, starts_of
from evaluations.report.first_screen import first_screen, provenance
from evaluations.report.page import claim_page, details, note_list, page, section, table
from evaluations.report.pictures import SAMPLES_PICTURE, write_samples_picture
from evaluations.report.rows import planned_rows, row_of, short_labels
from evaluations.report.run_folder import RunFolder, runs_in
from evaluations.report.runs_table import first_screen_of, runs_table
from evaluations.report.sections import COMPARED_SECTIONS, SECTIONS
from evaluations.report.size import NOTE_PLACE, fit_pictures
from evaluations.run_layout import SWEEP_RECORD

MAX_DIFFERENCES = 12  # of two protocols, that are listed
MAX_OPEN = 2  # runs whose own parts of a page are open


def open_runs(path: Path) -> list[RunFolder]:
    """Opens the run in a folder, or those right below it. Raises UserError if there is nothing to show."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder")
    runs = runs_in(path)
    if not runs and not sweep_of(path):
        raise UserError(
            f"{path} has neither evaluations/*.json nor a trained network, and no folder in it is a run; "
            "is it the folder of a run, or of several?"
        )
    return runs


def sweep_of(path: Path) -> dict[str, Any]:
    """The record of a sweep in a folder; empty where there is none. Raises UserError where it is damaged."""
    file = path / SWEEP_RECORD
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}") from error


# ------------------------------------------------------------------------------------------------ parts of a page
def attribution(runs: Sequence[RunFolder]) -> str:
    """Who made the images that are shown."""
    data = {str(result["protocol"].get("data")) for run in runs for result in run.results.values()}
    lines = [attribution_of(name) for name in sorted(data) if attribution_of(name)]
    return f"<footer>{escape(' '.join(lines))}</footer>" if lines else ""


def comparison(runs: Sequence[tuple[str, RunFolder]]) -> str:
    """One table per kind of result that two or more of the named runs have."""
    parts = []
    for name in sorted({name for _, run in runs for name in run.results}):
        results = [(run_name, run.results[name]) for run_name, run in runs if name in run.results]
        if len(results) < 2:
            continue

        # The metrics by rows, the runs by columns.
        compared = compare(results)
        body = [[row_name, *cells] for row_name, cells in compared.table()]
        head = ["metric", *(run_name for run_name, _ in results)]

        # What the ranking is worth.
        note = "<p>* best by more than the 95 % interval of the difference; the protocols are equal.</p>"
        if compared.differences:
            note = note_list("Not ranked where the protocols differ.", compared.differences[:MAX_DIFFERENCES])
        if compared.forced:
            note += note_list("Forced: these numbers should not be trusted.", compared.forced)
        parts.append(f"<h3>{escape(name)}</h3>{table(head, body)}{note}")
    return section("Results side by side", "".join(parts), "results")


def contents(parts: Sequence[str]) -> str:
    """Links to the sections of a page."""
    links = []
    for part in parts:
        anchor, has_anchor, rest = part.removeprefix('<section id="').partition('"><h2>')
        if has_anchor and part.startswith("<section"):
            title, _, _ = rest.partition("</h2>")
            links.append(f'<a href="#{anchor}">{title}</a>')
    return f"<nav>{''.join(links)}</nav>" if len(links) > 1 else ""


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """A name for each run: that of its folder, with the folder around it where several are called the same."""
    names = [run.path.resolve().name for run in runs]
    around = [f"{run.path.resolve().parent.name}/{name}" for run, name in zip(runs, names, strict=True)]
    return [
        name if names.count(name) == 1 else longer if around.count(longer) == 1 else f"{longer} ({number})"
        for number, (name, longer) in enumerate(zip(names, around, strict=True), start=1)
    ]


def title_of(name: str, runs: Sequence[RunFolder], sweep: dict[str, Any]) -> str:
    """What a page shows, in one line: the name, the kind of its runs, and the day on which the first one began."""
    trainings = [training for run in runs for training in trainings_of(run) if training.exists]
    if sweep:
        names = {*sweep.get("runs", {}), *(run.path.name for run in runs)}
        kind = f"sweep of {counted(len(names), 'run')}"
    elif len(runs) != 1:
        kind = f"comparison of {counted(len(runs), 'run')}"
    elif runs[0].is_training:
        kind = f"training of a {trainings[0].title}"
    else:
        kind = f"pipeline with {', '.join(training.title for training in trainings) or 'results only'}"
    began = [start["time"] for training in trainings for start in starts_of(training.folder)[:1] if "time" in start]
    return f"{name}: {kind}" + (f", begun {date_text(min(began)).partition(' ')[0]}" if began else "")


def _heading(title: str) -> str:
    """The title as a heading, whose last line never begins in the middle of the date."""
    text, begun, day = title.rpartition(", begun ")
    whole = f'{escape(text)}, <span class="whole">begun {escape(day)}</span>' if begun else escape(title)
    return f"<h1>{whole}</h1>"


def _page_of_one(name: str, run: RunFolder) -> str:
    title = title_of(name, [run], {})
    parts = [*(make(run) for make in SECTIONS), provenance(run)]
    head = [_heading(title), first_screen(run), NOTE_PLACE, contents(parts)]
    return page(name, title, [*head, *parts, attribution([run])])


def _page_of_several(name: str, runs: Sequence[RunFolder], sweep: dict[str, Any]) -> str:
    title = title_of(name, runs, sweep)
    planned = list(sweep.get("runs", {}))

    def place(run_name: str) -> int:
        """Where a run stands in its sweep; others follow."""
        return planned.index(run_name) if run_name in planned else len(planned)

    named = sorted(zip(_names(runs), runs, strict=True), key=lambda pair: place(pair[0]))

    # What compares them. The runs of a sweep are called by what sets them apart.
    labels = short_labels(sweep)
    labeled = [(labels.get(run_name, run_name), run) for run_name, run in named]
    rows = [
        row_of(run_name, run, f"run-{number}", labels.get(run_name, "")) for number, (run_name, run) in enumerate(named)
    ]
    rows += planned_rows(sweep, rows, labels)
    rows.sort(key=lambda row: place(row.name))
    compared = [runs_table(rows), overlaid_curves(labeled), comparison(labeled)]

    # What each has to show.
    own_parts = []
    for number, (run_name, run) in enumerate(named):
        content = "".join([first_screen(run), *(make(run) for make in COMPARED_SECTIONS), provenance(run)])
        content = content.replace("<section id=", "<section data-part=")  # ids are of the page, not of a run
        label = labels.get(run_name, run_name)
        heading = f"{label} (folder {run_name})" if label != run_name else run_name
        own_parts.append(f'<div id="run-{number}">{details(heading, content, is_open=len(named) <= MAX_OPEN)}</div>')
    parts = [*compared, section("Each run", "".join(own_parts), "each")]
    head = [_heading(title), first_screen_of(rows), NOTE_PLACE, contents(parts)]
    return page(name, title, [*head, *parts, attribution(runs)])


# ------------------------------------------------------------------------------------------------ the file
def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the page and returns its path.

    By default it is report.html in the folder of one run, or of a folder of runs, and comparison.html for several
    folders. Raises UserError where the page would overwrite something else than an earlier one of the same runs.
    """
    runs = [run for folder in folders for run in open_runs(folder)]
    sweep: dict[str, Any] = {}
    if len(folders) == 1:
        path = output or folders[0] / "report.html"
        name = folders[0].resolve().name
        sweep = sweep_of(folders[0])
    else:
        path = output or Path("comparison.html")
        name = " / ".join(run.path.name for run in runs)

    # The page of one run may come with a picture beside it.
    is_one = len(runs) == 1 and not sweep
    has_picture = is_one and path.parent == runs[0].path
    claim_page(path, name, companion=runs[0].path / SAMPLES_PICTURE if has_picture else None)
    text = _page_of_one(name, runs[0]) if is_one else _page_of_several(name, runs, sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, fit_pictures(text))
    if has_picture:  # behind the page: a picture without one would belong to nobody if this process is killed
        write_samples_picture(runs[0])
    return path
