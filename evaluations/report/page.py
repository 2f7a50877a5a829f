"""The frame of a report: one self-contained HTML page with its style and script, its tables and inline pictures.

Every text that comes from a run, such as the name of a class, goes through `html.escape` here or where it is used.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from engine.outputs import refuse

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def picture(pixels: np.ndarray, css: str = "px", zoom: int = 1) -> str:
    """Embeds a uint8 (3,H,W) image as a PNG of CSS class `css`.

    It is enlarged `zoom` times by pixel repetition.
    """
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(buffer, format="PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="{css}" alt="" src="data:image/png;base64,{encoded}">'


def pair(content: str) -> str:
    """A cell of a row of pictures, with text below them."""
    return f'<div class="pair">{content}</div>'


@dataclass(frozen=True)
class Card:
    """A number that matters, with what it means in a few words."""

    number: str
    name: str
    meaning: str = ""
    scale: str = ""  # beside what the number should be seen


def cards(numbers: Sequence[Card]) -> str:
    """Headline numbers side by side."""
    cells = "".join(
        f'<div class="card"><span class="name">{escape(card.name)}</span><b>{escape(card.number)}</b>'
        f"<span>{escape(card.meaning)}</span>{_scale_of(card)}</div>"
        for card in numbers
    )
    return f'<div class="cards">{cells}</div>' if cells else ""


def _scale_of(card: Card) -> str:
    return f'<span class="scale">{escape(card.scale)}</span>' if card.scale else ""


def section(title: str, content: str, anchor: str = "") -> str:
    """A part of the page with its heading; empty text where there is no content. `anchor` makes it a link's target."""
    if not content:
        return ""
    target = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{target}><h2>{escape(title)}</h2>{content}</section>"


def details(summary: str, content: str, is_open: bool = False) -> str:
    """A part that opens by a click; empty text where there is no content."""
    if not content:
        return ""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{content}</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = []
    for first, *others in rows:
        numbers = "".join(f'<td class="n">{escape(cell)}</td>' for cell in others)
        body.append(f"<tr><td>{escape(first)}</td>{numbers}</tr>")
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


@dataclass(frozen=True)
class Cell:
    """A cell of a table that a click sorts: by `value` where it has one, else by its text."""

    text: str
    value: float | None = None
    is_best: bool = False
    link: str = ""  # the id of a part of this page
    badge: str = ""  # the state that colors it

    def draw(self) -> str:
        """The cell as HTML."""
        content = escape(self.text)
        if self.badge:
            content = f'<span class="badge {escape(self.badge)}">{content}</span>'
        if self.link:
            content = f'<a href="#{escape(self.link)}">{content}</a>'
        kind = ' class="n best"' if self.is_best else ' class="n"' if self.value is not None else ""
        value = f' data-value="{self.value!r}"' if self.value is not None else ""
        return f"<td{kind}{value}>{content}</td>"


def sortable_table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table with one row per run, which a click on a heading sorts. Headings may break after an underscore."""
    top = "".join(f"<th>{escape(name).replace('_', '_<wbr>')}</th>" for name in head)
    body = "".join(f"<tr>{''.join(cell.draw() for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def note_list(text: str, lines: Sequence[str]) -> str:
    """A note with a list below its text."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="note">{escape(text)}<ul>{items}</ul></div>'


HEAD = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'


def page_mark(runs: str) -> str:
    """How every page of these runs begins, whatever its title says, by which an earlier one is known."""
    return f'{HEAD}<meta name="runs" content="{escape(runs)}">'


def page_start(runs: str, title: str) -> str:
    """The head of a page: of which runs it is, by name, and its title."""
    return f"{page_mark(runs)}<title>{escape(title)}</title>"


def page(runs: str, title: str, body: Sequence[str]) -> str:
    """The whole document."""
    return (
        f"{page_start(runs, title)}<style>{STYLE}</style><body>{''.join(body)}<script>{SCRIPT}</script></body></html>"
    )


def claim_page(path: Path, runs: str, companion: Path | None = None) -> None:
    """Checks that a page of these runs may be written to `path`, and a picture to `companion`.

    An earlier page of the same runs is replaced. Raises UserError for any other file.
    """
    if path.is_dir():
        raise refuse(path, "--output", "is a folder")
    if path.is_file():
        content = path.read_text(encoding="utf-8", errors="replace")
        if not content.startswith((page_mark(runs), f"{HEAD}<title>{escape(runs)}</title>")):  # older ones: by title
            raise refuse(path, "--output", "is no report of these runs")
    elif companion is not None and companion.exists():
        raise refuse(companion, "the picture", "belongs to no report")
