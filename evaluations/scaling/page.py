"""The page with all pictures and the numbers behind them, and the same as files: one SVG per picture, and a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from engine.atomic_file import write_atomic
from engine.outputs import refuse
from evaluations.report.page import Cell, claim_page, note_list, page, section, sortable_table
from evaluations.scaling.drawing import draw, value_text
from evaluations.scaling.panels import Dot, Panel
from evaluations.scaling.quantities import Quantity
from evaluations.scaling.readings import Point

PAGE = "index.html"
TABLE = "points.csv"
PICTURE = ".svg"
COLUMNS = (
    "picture", "series", "tokenizer", "step", "x", "x_value", "x_low", "x_high", "y", "y_value", "y_low", "y_high",
    "comparable", "objections", "path", "fingerprint",
)  # fmt: skip

ABOUT = (
    "A point is one tokenizer. Bars are 95 % intervals of the sampling of images: they do not say how far another seed "
    "of training would move a point. Lines join points of one series whose numbers may be compared: equal protocols, "
    "and nothing forced."
)
ABOUT_CORRELATION = (
    "A rank correlation tells how far two orders agree: +1 is the same order, -1 the reverse. Its interval holds every "
    "correlation of a normal law that so many points do not rule out; of few points it is wide, as it should be. It "
    "takes the numbers of the points as they are, without their intervals."
)


def claim_folder(folder: Path, name: str) -> None:
    """Checks that pictures of these runs, called `name` together, may be written into a folder.

    An earlier page of the same runs and its pictures are replaced. Raises UserError where the folder holds others.
    """
    if folder.exists() and not folder.is_dir():
        raise refuse(folder, "--output", "is a file")
    is_in_use = folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    if is_in_use and not (folder / PAGE).is_file():
        raise refuse(folder, "--output", f"is not empty, and has no {PAGE}")
    claim_page(folder / PAGE, name)


def write_pictures(folder: Path, name: str, title: str, panels: Sequence[Panel], left_out: Sequence[str]) -> list[Path]:
    """Writes the page, the pictures and the table, and returns their paths. Every panel has a point or more."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {PAGE: page_of(name, title, panels, left_out), TABLE: table_of(panels)}
    files |= {f"{panel.file_name}{PICTURE}": f"{draw(panel, as_file=True)}\n" for panel in panels}
    for file, text in files.items():
        write_atomic(folder / file, text)
    return [folder / file for file in files]


# ------------------------------------------------------------------------------------------------ the page
def page_of(name: str, title: str, panels: Sequence[Panel], left_out: Sequence[str]) -> str:
    """The page as HTML."""
    figures = "".join(_figure(panel) for panel in panels)
    about = f"<p>{escape(ABOUT)}</p>"
    if any(agreement.correlation is not None for panel in panels for agreement in panel.agreements):
        about += f"<p>{escape(ABOUT_CORRELATION)}</p>"
    others = note_list("Results that belong to no point:", left_out) if left_out else ""
    body = [
        f"<h1>{escape(title)}</h1>", about, f'<div class="charts">{figures}</div>', others,
        section("The numbers", _numbers(panels), "numbers"),
        section("As files", _about_files(panels), "files"),
    ]  # fmt: skip
    return page(name, title, body)


def _figure(panel: Panel) -> str:
    """A picture with what is to be said about it."""
    lines = [panel.note] if panel.note else []
    lines += [agreement.text for agreement in panel.agreements]
    if panel.unknown_errors:
        lines.append(f"{panel.unknown_errors} of {len(panel.dots)} points have a number whose error is not known.")
    texts = "".join(f"<p>{escape(line)}</p>" for line in lines)
    missing = note_list("Not compared:", panel.left_out) if panel.left_out else ""
    return (
        f'<figure class="plot"><figcaption>{escape(panel.title)}</figcaption>{draw(panel)}'
        f"<div>{texts}{missing}</div></figure>"
    )


def _numbers(panels: Sequence[Panel]) -> str:
    """One row per tokenizer, in the order of the first picture, and one column per quantity."""
    quantities = list(dict.fromkeys(quantity for panel in panels for quantity in (panel.x, panel.y)))
    order = list(dict.fromkeys(dot.point.series for panel in panels for dot in panel.dots))
    rows: dict[int, tuple[Point, dict[Quantity, Cell]]] = {}
    for panel in panels:
        for dot in sorted(panel.dots, key=lambda dot: dot.x.number):
            _, cells = rows.setdefault(id(dot.point), (dot.point, {}))
            for quantity, value in ((panel.x, dot.x), (panel.y, dot.y)):
                cells[quantity] = Cell(value_text(quantity, value), value.number)

    # The name of a series only where there are several.
    has_series = any(point.series for point, _ in rows.values())
    head = [*(["series"] if has_series else []), "tokenizer", *(quantity.short_title for quantity in quantities)]
    body = [
        [
            *([Cell(point.series)] if has_series else []),
            Cell(point.label),
            *(cells.get(quantity, Cell("")) for quantity in quantities),
        ]
        for point, cells in sorted(rows.values(), key=lambda row: order.index(row[0].series))
    ]
    return sortable_table(head, body)


def _about_files(panels: Sequence[Panel]) -> str:
    """Where the pictures and the table lie."""
    names = ", ".join(f"{panel.file_name}{PICTURE}" for panel in panels)
    return (
        f"<p>The same pictures lie beside this page as files: {escape(names)}. {TABLE} has every point with both "
        "numbers, the ends of their intervals, and whether it may be compared.</p>"
    )


# ------------------------------------------------------------------------------------------------ the table
def table_of(panels: Sequence[Panel]) -> str:
    """The points of all pictures as CSV, one row per picture and point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for panel in panels:
        writer.writerows(_row(panel, dot) for dot in panel.dots)
    return text.getvalue()


def _row(panel: Panel, dot: Dot) -> list[str]:
    point = dot.point
    numbers = [
        cell
        for quantity, value in ((panel.x, dot.x), (panel.y, dot.y))
        for cell in (quantity.text, repr(value.number), *_ends(value.low, value.high, value.half_width))
    ]
    return [
        f"{panel.file_name}{PICTURE}", point.series, point.label, "" if point.step is None else str(point.step),
        *numbers, "yes" if dot.is_comparable else "no", "; ".join(dot.objections),
        str(point.facts.get("path", "")), str(point.facts["fingerprint"]),
    ]  # fmt: skip


def _ends(low: float, high: float, half_width: float | None) -> Iterator[str]:
    """Both ends of an interval; empty where none is known."""
    return (repr(end) if half_width is not None else "" for end in (low, high))
