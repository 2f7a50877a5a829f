"""Puts values into the text of a recipe, which keeps its comments and its order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from engine.json_text import to_json
from engine.messages import UserError
from evaluations.own_data.fit import Choice

KEY = re.compile(r"^( *)(\w+):(?: .*)?$")
COMMENT_COLUMN = 40  # where comments begin, as far as values leave room


def fill_in(text: str, choices: Mapping[str, Choice | None], header: Sequence[str]) -> str:
    """The YAML `text` with the values of dotted keys, their reasons behind them, and `header` in place of its first
    comment. A key whose choice is None is left out.

    Each key must have a line of its own in the text.
    """
    lines = text.splitlines()
    body = next(number for number, line in enumerate(lines) if not line.startswith("#"))

    open_sections: list[tuple[int, str]] = []  # (indentation, key) of the sections around a line
    filled: list[str] = []
    missing = set(choices)
    for line in lines[body:]:
        match = KEY.match(line)
        if match is None:
            filled.append(line)
            continue

        # The dotted key of the line.
        indentation = len(match[1])
        open_sections = [section for section in open_sections if section[0] < indentation] + [(indentation, match[2])]
        key = ".".join(name for _, name in open_sections)

        # Its value, or the line as it is.
        if key not in choices:
            filled.append(line)
            continue
        missing.discard(key)
        choice = choices[key]
        if choice is not None:
            filled.append(_line(f"{match[1]}{match[2]}: {scalar(choice.value)}", choice.reason))
    assert not missing, f"the recipe has no line for {sorted(missing)}"
    return "\n".join([*(f"# {line}".rstrip() for line in header), *filled]) + "\n"


def _line(content: str, reason: str) -> str:
    """A line with a comment, which holds no line break."""
    comment = " ".join(reason.split())
    return f"{content:<{COMMENT_COLUMN - 1}} # {comment}" if comment else content


def scalar(value: str | float | bool) -> str:
    """A value as YAML. Raises UserError for text that a recipe cannot hold as it is."""
    if not isinstance(value, str):
        return to_json(value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{value!r} is not UTF-8, so that no recipe can name it; rename it, or make a link") from error
    if "${" in value:
        raise UserError(f"{value!r} holds ${{, which stands for another value in a recipe; rename it, or make a link")
    return to_json(value, ensure_ascii=False)
