"""A panel as a picture: points with 95 % intervals, in the colors of reports, each series with a marker of its own.

The picture is complete without its page: it names its axes, its series and its points. On a page it takes the colors of
the page, in a file those of a white sheet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from evaluations.metrics.registry import shown
from evaluations.report.charts import BOTTOM, COLORS, LEFT, RIGHT, WIDTH, nice_ticks
from evaluations.result_intervals import half_width_text
from evaluations.scaling.labels import Box, place_labels
from evaluations.scaling.panels import Dot, Panel, names_checkpoints
from evaluations.scaling.quantities import Quantity, Value
from evaluations.scaling.sizes import SIZES

HEIGHT = 300  # in SVG units, without the names of series
TOP = 16
LEGEND_LINE = 18  # height of a line of names of series
MAX_TICKS = 7  # of a logarithmic axis
TICK_FACTORS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
MARGIN = 0.07  # of the range of an axis, beyond its outermost values
MAX_LABELS = 14  # points that are named; of more, only the pointer tells
MAX_LABEL = 26  # letters of the name of a point
AXIS_SIZE, AXIS_LETTER = 11.5, 6.0  # of the name of an axis: the size of its font, and the width of a letter
LINE_STEP = 12.0  # between two places of a line that names of points should not hide
CAP = 3.5  # half of the width of the end of an error bar
SIZE_UNITS = ((1e9, "B"), (1e6, "M"), (1e4, "k"))  # of counts beside an axis; k for ten thousand and more
MAX_COUNT = 1e12  # above which a count is written as a power of ten

# Shapes of markers around (0, 0), one per series.
MARKERS = (
    '<circle r="4.2"/>', '<rect x="-3.9" y="-3.9" width="7.8" height="7.8"/>', '<path d="M0 -5 4.8 3.8 -4.8 3.8Z"/>',
    '<path d="M0 -5.6 4.6 0 0 5.6 -4.6 0Z"/>', '<path d="M0 5 4.8 -3.8 -4.8 -3.8Z"/>',
)  # fmt: skip

FILE_STYLE = (
    'text{font:11px system-ui,"Segoe UI","Helvetica Neue",Arial,sans-serif;fill:#5a6774}'
    ".axis{font-size:11.5px;fill:#1f2933}.name{fill:#1f2933}.grid{stroke:#e1e5ea}"
)


def count_text(value: float) -> str:
    """A size beside an axis: 250, 40k, 1.5M, 2.9B, 3e15."""
    if abs(value) >= MAX_COUNT:
        return f"{value:.2g}".replace("e+", "e")
    for size, letter in SIZE_UNITS:
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:g}"


def value_text(quantity: Quantity, value: Value) -> str:
    """A number with half of its interval: `21.4 ± 0.3`, or a size: `1.8M`."""
    if quantity.is_size:
        return count_text(value.number)
    interval = "" if value.half_width is None else f" ± {half_width_text(quantity.metric, value.half_width)}"
    return f"{shown(quantity.metric, value.number)}{interval}"


# ------------------------------------------------------------------------------------------------ axes
def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in a positive range: the densest series of `TICK_FACTORS` of which seven or fewer lie in it."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in TICK_FACTORS:
        ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= MAX_TICKS:
            break
    return inside


@dataclass(frozen=True)
class Scale:
    """One axis: from numbers to SVG units."""

    low: float  # of the axis; its logarithm where it is logarithmic
    high: float
    ticks: tuple[float, ...]
    start: float  # SVG units at the low end
    end: float
    is_log: bool
    quantity: Quantity

    @classmethod
    def over(cls, quantity: Quantity, values: Sequence[Value], start: float, end: float) -> Scale:
        """The axis of some numbers with their intervals."""
        ends = [end for value in values for end in (value.low, value.high)]
        low, high = min(ends), max(ends)
        is_log = quantity.is_size and low > 0 and high / low > SIZES[quantity.text].log_ratio

        # Equal ends get a range; all get a margin.
        low, high = (math.log10(low), math.log10(high)) if is_log else (low, high)
        margin = MARGIN * (high - low) or (abs(low) * 0.05 or 0.5)
        low, high = low - margin, high + margin
        if is_log:
            ticks = log_ticks(10**low, 10**high)
        else:
            ticks = [tick for tick in nice_ticks(low, high) if low <= tick <= high]
        return cls(low, high, tuple(ticks), start, end, is_log, quantity)

    def place(self, number: float) -> float:
        """Where a number stands, in SVG units."""
        height = math.log10(number) if self.is_log else number
        return round(self.start + (height - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def text(self, tick: float) -> str:
        """A number beside the axis."""
        if self.quantity.is_size:
            return count_text(tick)
        return f"{100 * tick:g}%" if self.quantity.is_percent else f"{tick:g}"


def _draw_axes(panel: Panel, x: Scale, y: Scale) -> str:
    """Grid lines with their numbers, and the names of both axes."""
    right, bottom, top = x.end, y.start, y.end
    parts = []
    for tick in y.ticks:
        place = y.place(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{place}" y2="{place}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4}" text-anchor="end">{y.text(tick)}</text>')
    for tick in x.ticks:
        place = x.place(tick)
        parts.append(f'<line class="grid" x1="{place}" x2="{place}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{place}" y="{bottom + 16}" text-anchor="middle">{x.text(tick)}</text>')

    name = f"{panel.x.title}, logarithmic" if x.is_log else panel.x.title
    parts.append(_axis_name(name, f'x="{(LEFT + right) / 2}" y="{bottom + BOTTOM - 8}"', right - LEFT))

    # That of the vertical axis in two lines where one is too short.
    room = bottom - top + TOP
    lines = [panel.y.title]
    if AXIS_LETTER * len(panel.y.title) > room:
        lines = [panel.y.short_title, panel.y.direction]
    for number, line in enumerate(filter(None, lines)):
        turned = f'transform="translate({12 + 13 * number} {(top + bottom) / 2}) rotate(-90)"'
        parts.append(_axis_name(line, turned, room))
    return "".join(parts)


def _axis_name(name: str, place: str, room: float) -> str:
    """The name of an axis in its middle, in smaller letters where it has little room."""
    size = min(AXIS_SIZE, AXIS_SIZE * room / (AXIS_LETTER * len(name)))
    style = f' style="font-size:{size:.1f}px"' if size < AXIS_SIZE else ""
    return f'<text class="axis" {place} text-anchor="middle"{style}>{escape(name)}</text>'


# ------------------------------------------------------------------------------------------------ points
def _draw_dot(panel: Panel, dot: Dot, x: Scale, y: Scale, number: int) -> str:
    """A point with its error bars; hollow where it may not be compared. The pointer tells its numbers."""
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    across, down = x.place(dot.x.number), y.place(dot.y.number)

    # The error bars, across and down.
    bars = ""
    if dot.x.half_width:
        low, high = x.place(dot.x.low), x.place(dot.x.high)
        bars += f'<path d="M{low} {down}H{high}M{low} {down - CAP}v{2 * CAP}M{high} {down - CAP}v{2 * CAP}"/>'
    if dot.y.half_width:
        low, high = y.place(dot.y.low), y.place(dot.y.high)
        bars += f'<path d="M{across} {low}V{high}M{across - CAP} {low}h{2 * CAP}M{across - CAP} {high}h{2 * CAP}"/>'

    # What the pointer tells, and the marker.
    said = [f"{q.short_title} {value_text(q, value)}" for q, value in ((panel.x, dot.x), (panel.y, dot.y))]
    title = "; ".join([*filter(None, [dot.point.series]), dot.point.label, *said, *dot.objections])
    fill = color if dot.is_comparable else "none"
    return (
        f'<g class="dot"><title>{escape(title)}</title><g fill="none" stroke="{color}" stroke-width="1.3">{bars}</g>'
        f'<g transform="translate({across} {down})"><circle r="11" fill="transparent"/>'
        f'<g fill="{fill}" stroke="{color}" stroke-width="1.6">{marker}</g></g></g>'
    )


def joined(dots: Sequence[Dot]) -> list[Dot]:
    """The points of a series that a line joins: those that may be compared, in the order of x."""
    return sorted((dot for dot in dots if dot.is_comparable), key=lambda dot: dot.x.number)


def _draw_line(dots: Sequence[Dot], x: Scale, y: Scale, number: int) -> str:
    """The line of a series."""
    ordered = joined(dots)
    if len(ordered) < 2:
        return ""
    path = " ".join(f"{x.place(dot.x.number)},{y.place(dot.y.number)}" for dot in ordered)
    color = COLORS[number % len(COLORS)]
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6" stroke-opacity="0.55"/>'


def _draw_labels(panel: Panel, x: Scale, y: Scale) -> str:
    """The names of the points, where they are few and the axis does not tell them apart."""
    if len(panel.dots) > MAX_LABELS or names_checkpoints(panel.x):
        return ""
    names = [
        label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"
        for label in (dot.point.label for dot in panel.dots)
    ]
    places = [(x.place(dot.x.number), y.place(dot.y.number)) for dot in panel.dots]
    labels = place_labels(names, places, Box(LEFT, y.end, x.end, y.start), [*_drawn_room(panel, x, y)])
    return "".join(
        f'<text class="name" x="{label.x:.1f}" y="{label.y:.1f}" text-anchor="{label.anchor}">'
        f"{escape(label.text)}</text>"
        for label in labels
    )


def _drawn_room(panel: Panel, x: Scale, y: Scale) -> Iterator[Box]:
    """The room of error bars and of lines between points."""
    for dot in panel.dots:
        across, down = x.place(dot.x.number), y.place(dot.y.number)
        yield Box(across - CAP, y.place(dot.y.high), across + CAP, y.place(dot.y.low))
        yield Box(x.place(dot.x.low), down - CAP, x.place(dot.x.high), down + CAP)
    if not panel.is_trend:
        return
    for name in panel.series:
        line = joined([dot for dot in panel.dots if dot.point.series == name])
        for first, second in itertools.pairwise(line):
            start = x.place(first.x.number), y.place(first.y.number)
            end = x.place(second.x.number), y.place(second.y.number)
            steps = max(1, round(math.dist(start, end) / LINE_STEP))
            for step in range(steps + 1):
                across, down = (a + (b - a) * step / steps for a, b in zip(start, end, strict=True))
                yield Box(across - 3, down - 3, across + 3, down + 3)


def _draw_legend(names: Sequence[str]) -> tuple[str, int]:
    """(the markers with the names of the series, the height that they take); nothing for a single one."""
    if len(names) < 2:
        return "", 0
    parts, across, line = [], float(LEFT), 0
    for number, name in enumerate(names):
        width = 20 + 6.2 * len(name)
        if across + width > WIDTH - RIGHT and across > LEFT:
            across, line = float(LEFT), line + 1
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        down = 12 + line * LEGEND_LINE
        parts.append(
            f'<g transform="translate({across + 5:.1f} {down})" fill="{color}">{marker}</g>'
            f'<text class="name" x="{across + 14:.1f}" y="{down + 4}">{escape(name)}</text>'
        )
        across += width + 10
    return "".join(parts), (line + 1) * LEGEND_LINE


# ------------------------------------------------------------------------------------------------ the picture
def draw(panel: Panel, as_file: bool = False) -> str:
    """The panel as SVG: for a page, or `as_file`, with a sheet and a style of its own. It has one point or more."""
    legend, height_of_legend = _draw_legend(panel.series)
    height = HEIGHT + height_of_legend
    x = Scale.over(panel.x, [dot.x for dot in panel.dots], LEFT, WIDTH - RIGHT)
    y = Scale.over(panel.y, [dot.y for dot in panel.dots], height - BOTTOM, TOP + height_of_legend)

    # Lines below points, names above both.
    parts = [legend, _draw_axes(panel, x, y)]
    groups = [[dot for dot in panel.dots if dot.point.series == name] for name in panel.series]
    if panel.is_trend:
        parts += [_draw_line(dots, x, y, number) for number, dots in enumerate(groups)]
    parts += [_draw_dot(panel, dot, x, y, number) for number, dots in enumerate(groups) for dot in dots]
    parts.append(_draw_labels(panel, x, y))

    # What a reader without eyes for it is told.
    said = f"{panel.title}: {len(panel.dots)} tokenizers with 95 % intervals; the numbers stand in the table"
    attributes = f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(said)}"'
    if as_file:
        attributes += f' xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        sheet = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>'
        parts = [f"<title>{escape(panel.title)}</title><style>{FILE_STYLE}</style>{sheet}", *parts]
    return f"<svg {attributes}>{''.join(parts)}</svg>"
