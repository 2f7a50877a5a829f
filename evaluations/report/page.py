"""The frame of a report: one self-contained HTML page, its style, and inline pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --paper: #ffffff; --card: #f7f9fb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #323f4b; --paper: #14191f; --card: #1c232b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; }
p, .legend { color: var(--soft); margin: .2rem 0 .8rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .75rem; margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.card { overflow-wrap: anywhere; } .card b { display: block; font-size: 1.45rem; } .card span { color: var(--soft); font-size: .84rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 1rem; }
figure { margin: 0; } .chart { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; } svg { width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--soft); } svg .grid { stroke: var(--line); }
.legend span { display: inline-block; margin-right: .9rem; font-size: .82rem; } .legend b { color: var(--ink); }
.legend i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .35em; }
table { border-collapse: collapse; min-width: 24rem; } td, th { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(74px, 1fr)); gap: .5rem; }
.pair { text-align: center; font-size: .72rem; color: var(--soft); }
img.px { width: 100%; image-rendering: pixelated; display: block; border-radius: 3px; }
.row { display: grid; grid-template-columns: 7.5rem 1fr; gap: .8rem; align-items: start; border-top: 1px solid var(--line); padding: .6rem 0; }
.row .pairs { grid-template-columns: repeat(8, minmax(0, 1fr)); } .row h3 { margin: .2rem 0; font-size: 1rem; }
.near { opacity: .55; margin-top: 3px; }
details { margin-top: .6rem; } pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; font-size: .78rem; }
img.wide { width: auto; max-width: 100%; border-radius: 4px; } .scroll { overflow-x: auto; }
.note { border-left: 3px solid #d97706; padding-left: .8rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; border-top: 1px solid var(--line); padding-top: .8rem; }
"""  # noqa: E501


def picture(pixels: np.ndarray, css: str = "px", zoom: int = 1) -> str:
    """A uint8 (3,H,W) image as an inline PNG, enlarged by pixel repetition."""
    image, buffer = Image.fromarray(pixels.transpose(1, 2, 0)), io.BytesIO()
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(buffer, format="PNG")
    return f'<img class="{css}" alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def cards(shown: Sequence[tuple[str, str]]) -> str:
    """Headline numbers: (value, what it is)."""
    cells = "".join(f'<div class="card"><b>{escape(v)}</b><span>{escape(n)}</span></div>' for v, n in shown)
    return f'<div class="cards">{cells}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><td>{escape(row[0])}</td>" + "".join(f'<td class="n">{escape(cell)}</td>' for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><body>{''.join(body)}</body></html>"
    )
