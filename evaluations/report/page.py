"""The frame of a report: one self-contained HTML page, its style, and inline pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from engine.outputs import refuse

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")


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


def cards(numbers: Sequence[tuple[str, str]]) -> str:
    """Headline numbers, each with its text and its name."""
    cells = "".join(
        f'<div class="card"><b>{escape(text)}</b><span>{escape(name)}</span></div>' for text, name in numbers
    )
    return f'<div class="cards">{cells}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose other columns are numbers."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = []
    for first, *others in rows:
        numbers = "".join(f'<td class="n">{escape(cell)}</td>' for cell in others)
        body.append(f"<tr><td>{escape(first)}</td>{numbers}</tr>")
    return f'<div class="scroll"><table><tr>{top}</tr>{"".join(body)}</table></div>'


def note_list(text: str, lines: Sequence[str]) -> str:
    """A note with a list below its text."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="note">{escape(text)}<ul>{items}</ul></div>'


def page_start(title: str) -> str:
    """How a page of this title begins, by which an earlier report of the same runs is known."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title>"
    )


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    return f"{page_start(title)}<style>{STYLE}</style><body>{''.join(body)}</body></html>"


def claim_page(path: Path, title: str, companion: Path | None = None) -> None:
    """Checks that a page may be written to `path`, and a picture to `companion`.

    An earlier page of this title is replaced. Raises UserError for any other file.
    """
    if path.is_dir():
        raise refuse(path, "--output", "is a folder")
    if path.is_file():
        content = path.read_text(encoding="utf-8", errors="replace")
        if not content.startswith(page_start(title)):
            raise refuse(path, "--output", "is no report of these runs")
    elif companion is not None and companion.exists():
        raise refuse(companion, "the picture", "belongs to no report")
