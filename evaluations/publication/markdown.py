"""Texts and tables in Markdown, written so that they show what they say, and read back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape, unescape

SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~])")  # what Markdown reads as more than text
ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#|~])")
BETWEEN_CELLS = re.compile(r"(?<!\\)\|")


def plain(text: object) -> str:
    """A text as Markdown that shows it as it is, on one line."""
    return SPECIAL.sub(r"\\\1", escape(" ".join(str(text).split())))


def table(rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(map(plain, row))} |" for row in rows]
    rule = f"|{'---|' * len(rows[0])}"
    return "\n".join([lines[0], rule, *lines[1:]])


def read_plain(markdown: str) -> str:
    """The text that `plain` has written."""
    return unescape(ESCAPED.sub(r"\1", markdown))


def read_table(lines: Iterable[str]) -> list[list[str]]:
    """The rows of a table that `table` has written, its head first."""
    rows = [BETWEEN_CELLS.split(line.strip())[1:-1] for line in lines if not line.startswith("|---")]
    return [[read_plain(cell.strip()) for cell in row] for row in rows]
