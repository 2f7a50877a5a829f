"""Writes a self-contained HTML page for one run, or several side by side: numbers with their protocol, curves, images.

    python -m evaluations.report runs/quickstart
    python -m evaluations.report runs/VQ_SS256                 (one training, with its curves)
    python -m evaluations.report runs/                         (a folder of runs: an overview of all of them)
    python -m evaluations.report runs/ar_probe/A runs/ar_probe/B --output comparison.html

This command reads what a run left behind (metrics.jsonl of its networks, evaluations/*, results of probes), and writes
report.html and samples.png into the folder of the run. For several runs, the page has one table per kind of result,
ranked where the protocols agree, and shows the same parts of all runs one below the other. An earlier page of the same
runs is replaced; no other file is.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

from engine.atomic_file import write_atomic
from engine.cli import entry_parser, run_entry
from engine.data.sources import attribution_of
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from evaluations.comparison import compare
from evaluations.report.overview import overview
from evaluations.report.page import claim_page, note_list, page, table
from evaluations.report.pictures import SAMPLES_PICTURE
from evaluations.report.run_folder import RunFolder, runs_in
from evaluations.report.sections import COMPARED_SECTIONS, SECTIONS

MAX_DIFFERENCES = 12  # of two protocols, that are listed


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or of several runs")
    parser.add_argument(
        "--output", type=Path, help="page to write (default: RUN/report.html; comparison.html for several folders)"
    )
    return parser.parse_args()


def open_runs(path: Path) -> list[RunFolder]:
    """Opens the run in a folder, or those right below it. Raises UserError if there is nothing to show."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder")
    runs = runs_in(path)
    if not runs:
        raise UserError(
            f"{path} has neither evaluations/*.json nor a trained network, and no folder in it is a run; "
            "is it the folder of a run, or of several?"
        )
    return runs


def attribution(runs: list[RunFolder]) -> str:
    """Who made the images that are shown."""
    data = {str(result["protocol"].get("data")) for run in runs for result in run.results.values()}
    lines = [attribution_of(name) for name in sorted(data) if attribution_of(name)]
    return f"<footer>{escape(' '.join(lines))}</footer>" if lines else ""


def comparison(runs: list[RunFolder]) -> str:
    """One table per kind of result that two or more of the runs have."""
    parts = []
    for name in sorted({name for run in runs for name in run.results}):
        results = [(run.path.name, run.results[name]) for run in runs if name in run.results]
        if len(results) < 2:
            continue

        # The metrics by rows, the runs by columns.
        compared = compare(results)
        body = [[row_name, *cells] for row_name, cells in compared.table()]
        head = ["metric", *(run_name for run_name, _ in results)]

        # What the ranking is worth.
        note = "<p>* best; the protocols are equal.</p>"
        if compared.differences:
            note = note_list("Not ranked where the protocols differ.", compared.differences[:MAX_DIFFERENCES])
        if compared.forced:
            note += note_list("Forced: these numbers should not be trusted.", compared.forced)
        parts.append(f"<h2>{escape(name)}</h2>{table(head, body)}{note}")
    return "".join(parts)


def _page_of_one(title: str, run: RunFolder) -> str:
    body = [f"<h1>{escape(title)}</h1>", *(section(run) for section in SECTIONS), attribution([run])]
    return page(title, body)


def _page_of_several(title: str, runs: list[RunFolder]) -> str:
    body = [f"<h1>{escape(title)}</h1>", overview(runs), comparison(runs)]
    for section in COMPARED_SECTIONS:
        for run in runs:
            content = section(run)
            if content:
                summary = f"<summary>{escape(run.path.name)}</summary>"
                body.append(f"<details open>{summary}{content}</details>")
    return page(title, [*body, attribution(runs)])


def write_report(folders: list[Path], output: Path | None = None) -> Path:
    """Writes the page and returns its path.

    By default it is report.html in the folder of one run, or of a folder of runs, and comparison.html for several
    folders. Raises UserError where the page would overwrite something else than an earlier one of the same runs.
    """
    runs = [run for folder in folders for run in open_runs(folder)]
    if len(folders) == 1:
        path = output or folders[0] / "report.html"
        title = folders[0].resolve().name
    else:
        path = output or Path("comparison.html")
        title = " / ".join(run.path.name for run in runs)

    # The page of one run may come with a picture beside it.
    is_one = len(runs) == 1
    has_picture = is_one and path.parent == runs[0].path
    claim_page(path, title, companion=runs[0].path / SAMPLES_PICTURE if has_picture else None)
    text = _page_of_one(title, runs[0]) if is_one else _page_of_several(title, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the run folders, and a place for the page."""
    for path in args.runs:
        with preflight.collecting():
            open_runs(path)
            preflight.ready.append(f"run: {path}")
    if args.output is not None:
        preflight.output_file(args.output, "--output")
    else:
        preflight.output(args.runs[0] if len(args.runs) == 1 else Path(), "report")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    logger.info("wrote %s", write_report(args.runs, args.output))


if __name__ == "__main__":
    run_entry(main)
