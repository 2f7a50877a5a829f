"""What can still be read of drawn text, by the height of its letters (text_readback)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from evaluations.metrics.registry import READ_BY_HEIGHT, READBACK, READINGS, title
from evaluations.report.charts import Points, line_chart
from evaluations.report.page import pair, picture, section, table
from evaluations.report.run_folder import RunFolder


def drawn_text(run: RunFolder) -> str:
    """Charts over the height of letters, with two anchors, and a picture of each height with its reconstruction."""
    parts = [
        _of_result(run, name, result) for name, result in run.results.items() if READ_BY_HEIGHT in result["metrics"]
    ]
    return section("Drawn text", "".join(parts), "drawn-text")


def _of_result(run: RunFolder, name: str, result: Mapping[str, Any]) -> str:
    """The part of one result."""
    by_height = {int(height): facts for height, facts in result["metrics"][READ_BY_HEIGHT].items()}
    facts = result["protocol"].get(READBACK[0], {})
    anchors = facts.get("anchors", {})
    charts = [
        line_chart(
            f"{title(reading)}, over the height of the letters ({name})",
            {"reconstruction": _points(by_height, reading)}
            | {text: _points(by_height, f"{reading}_{anchor}") for anchor, text in anchors.items()},
            "fraction of words" if reading == READINGS[0] else "1 - distance / length",
            "height of capitals, px",
        )
        for reading in READINGS
    ]
    return (
        "<p>Random words, drawn and turned into codes and back, as a small network reads them. Only words count that "
        "it reads on the originals. Blurred originals and JPEG files of them show what the numbers mean. "
        "Behind ± stand standard errors.</p>"
        f'<div class="charts">{"".join(charts)}</div>{_table(by_height, anchors)}{_examples(run, name)}'
    )


def _points(by_height: Mapping[int, Mapping[str, float]], key: str) -> Points:
    """[(height, value), ...] of the heights that have one."""
    return [(height, facts[key]) for height, facts in sorted(by_height.items()) if key in facts]


def _table(by_height: Mapping[int, Mapping[str, Any]], anchors: Mapping[str, str]) -> str:
    """Words read exactly, with standard errors, and how many there are."""
    reading = READINGS[0]
    keys = [reading, *(f"{reading}_{anchor}" for anchor in anchors)]
    rows = [
        [f"{height} px", *(_percent(facts, key) for key in keys), f"{facts['words']:,}", f"{facts['left_out']:,}"]
        for height, facts in sorted(by_height.items())
    ]
    head = ["letters", "reconstruction", *anchors.values(), "words", "of them left out"]
    return table(head, rows)


def _percent(facts: Mapping[str, Any], key: str) -> str:
    """A fraction with its standard error, where there is one."""
    if key not in facts:
        return "unavailable"
    error = facts.get(f"{key}_se")
    return f"{facts[key]:.1%}" + (f" ± {error:.1%}" if error is not None else "")


def _examples(run: RunFolder, name: str) -> str:
    """A picture of each height above its reconstruction."""
    stored = run.arrays(name, "text_originals")
    if not stored:
        return ""
    columns = ("text_originals", "text_reconstructions", "text_heights", "text_words", "text_read")
    cells = []
    for original, reconstruction, height, words, read in zip(*(stored[key] for key in columns), strict=True):
        text = escape(f"{height} px: {read} of {words} words read")
        cells.append(pair(f"{picture(original)}{picture(reconstruction)}{text}"))
    return f'<div class="pairs">{"".join(cells)}</div>'
