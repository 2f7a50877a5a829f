"""The page of an atlas: one HTML file with everything inside, which asks no other host for anything.

The texts of a run are untrusted: they reach the page as JSON, where `<` is written as an escape, and its scripts set
them as text, never as HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from engine.json_text import to_json
from evaluations.report.page import SCRIPT, STYLE, page_start

MAX_BYTES = 15_000_000
FOLDER = Path(__file__).parent
SCRIPTS = ("drawing.js", "tokens.js", "codebook.js", "samples.js", "start.js")  # in this order, as one program

# The page may run its own script and show its own pictures, and nothing else.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)

TOKENS_TEXT = (
    "Pick an image. The slider moves the border between the original and its reconstruction from tokens. Point at a "
    "token to read its code; click one to see the image with the most used other codes in its place. Tokens, rows, "
    "columns and codes are counted from 0, as in Python."
)
CODEBOOK_TEXT = (
    "Each dot is a code, placed along the two directions in which the codes of the counted images vary most (PCA). "
    "Distances on the map are approximate, because it leaves out all other directions. Click a code for its nearest "
    "neighbors, which are those of the whole vectors."
)
SAMPLES_TEXT = (
    "One class per row, one guidance scale per column. A row uses the same random numbers throughout: only the scale "
    "differs. Scale 1 is without guidance."
)


def script() -> str:
    """All scripts of the page as one program."""
    parts = [(FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();"


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element."""
    return to_json(data).replace("<", "\\u003c")


def section(name: str, title: str, text: str) -> str:
    """A part of the page that its scripts fill, one column per subject."""
    return f'<h2>{escape(title)}</h2><p>{escape(text)}</p><div class="subjects" id="{name}"></div>'


def subject_header(subject: Mapping[str, Any]) -> str:
    """The name of a subject, its numbers, and what the page cannot show of it."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in subject["notes"])
    listed = f"<ul>{notes}</ul>" if notes else ""
    return f"<div><h3>{escape(subject['title'])}</h3><p>{escape(subject['summary'])}</p>{listed}</div>"


def render(title: str, summary: str, subjects: Sequence[Mapping[str, Any]], charts: Sequence[str], footer: str) -> str:
    """The whole page. `subjects` are what `gather` found; `charts` are curves as HTML, one text per subject."""
    # What the page says without its scripts.
    parts = [
        page_start(title, title),
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        f"<style>{STYLE}{(FOLDER / 'atlas.css').read_text(encoding='utf-8')}</style><body>",
        f"<h1>{escape(title)}</h1><p>{escape(summary)}</p>",
        '<noscript><p class="note">This page needs JavaScript. It runs its own and loads nothing.</p></noscript>',
        f'<div class="subjects">{"".join(subject_header(subject) for subject in subjects)}</div>',
    ]

    # What the scripts fill.
    parts += [
        section("tokens", "Tokens", TOKENS_TEXT),
        section("codebook", "Codebook", CODEBOOK_TEXT),
    ]
    if any(subject["samples"] for subject in subjects):
        parts.append(section("samples", "Samples", SAMPLES_TEXT))

    # The training curves, and the scripts with all that they read.
    parts += [
        *charts,
        footer,
        f'<script type="application/json" id="atlas">{embedded({"subjects": subjects})}</script>',
        f"<script>{SCRIPT}</script><script>{script()}</script></body></html>",
    ]
    return "".join(parts)
