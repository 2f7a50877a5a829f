"""Line charts as inline SVG, for reports that are one self-contained HTML file.

A chart is complete without a script. With that of the page (page.js), it also shows the values under the pointer, and
a click into its legend hides a line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from engine.json_text import to_json

# Size of a chart and of the margins around its plot, in SVG units.
WIDTH = 460
HEIGHT = 250
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 46

COLORS = ("#2563eb", "#e11d48", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f", "#78716c")
DASHES = ("", "6 3", "2 3", "9 3 2 3")  # of the lines after the first nine, the second nine, ...
FEW_POINTS = 12  # lines with fewer points than this also show each point as a dot
LOG_RATIO = 1e4  # of the largest to the smallest value, above which the vertical axis is logarithmic
MAX_POINTS = 400  # of a line; a longer one is thinned
MAX_LEGEND = 12  # lines that a legend names; where there are more, only the pointer does

Points = Sequence[tuple[float, float]]  # (step, value)


def nice_ticks(low: float, high: float) -> list[float]:
    """Chooses about five round numbers that cover low..high."""
    # Equal ends get a margin, so that there is a range at all.
    if not high > low:
        margin = max(0.5, abs(low) * 1e-3)
        low -= margin
        high += margin

    # The smallest round step that needs about five ticks.
    raw_step = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw_step))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw_step * 0.999)

    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def decade_ticks(low: float, high: float) -> list[float]:
    """Chooses powers of ten, at most seven, that cover the positive range low..high."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / 6))
    return [10.0 ** min(exponent, 308) for exponent in range(first, last + step, step)]


def tick_text(value: float) -> str:
    """A number beside an axis: 250, 40k, 1.5M, 1e-05."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if size <= abs(value) < 1e9:
            return f"{value / (size if letter == 'M' else 1e3):g}{letter}"
    return f"{value:g}"


def thinned(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` of the points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= limit:
        return points
    num_stretches = limit // 2 - 1
    edges = [round(1 + i * (len(points) - 2) / num_stretches) for i in range(num_stretches + 1)]
    chosen = {0, len(points) - 1}
    for start, end in pairwise(edges):
        stretch = range(start, end)
        chosen |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(chosen)]


class Axes:
    """The scales of a chart: from steps and values to SVG coordinates."""

    def __init__(self, points: Points, x_name: str, y_name: str) -> None:
        self.x_name = x_name
        self.y_name = y_name
        xs = [x for x, _ in points]
        ys = [y for _, y in points]

        # A single step stands at the left, and is the only one that is named.
        self.x_low = min(xs)
        self.x_high = max(xs) if max(xs) > min(xs) else min(xs) + 1
        all_x_ticks = nice_ticks(min(xs), max(xs)) if max(xs) > min(xs) else [min(xs)]
        self.x_ticks = [tick for tick in all_x_ticks if self.x_low <= tick <= self.x_high]

        # Values of very different sizes, such as those of a run that diverged, stand on a logarithmic axis.
        self.is_log = min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
        self.y_ticks = decade_ticks(min(ys), max(ys)) if self.is_log else nice_ticks(min(ys), max(ys))
        self.y_low = self.height(self.y_ticks[0])
        self.y_high = self.height(self.y_ticks[-1])

    def height(self, y: float) -> float:
        """A value, or its logarithm where the axis is logarithmic."""
        return math.log10(y) if self.is_log else y

    def place(self, x: float, y: float) -> tuple[float, float]:
        """SVG coordinates of a point, from the left and from the top."""
        right = LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (self.y_high - self.height(y)) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)
        return round(right, 1), round(down, 1)

    def draw(self) -> list[str]:
        """Draws grid lines with the values at their left, steps below, and the names of both axes."""
        parts = []
        for tick in self.y_ticks:
            _, y = self.place(self.x_low, tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick_text(tick)}</text>')
        for tick in self.x_ticks:
            x, _ = self.place(tick, self.y_ticks[0])
            parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick_text(tick)}</text>')

        # The names: below the steps, and turned at the left edge.
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(
            f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{escape(self.x_name)}</text>"
        )
        if self.y_name:
            name = f"{self.y_name}, logarithmic" if self.is_log else self.y_name
            parts.append(
                f'<text class="axis" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
                f"{escape(name)}</text>"
            )
        return parts


def _stroke(number: int) -> tuple[str, str]:
    """The color and the dashes of line `number`."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def _draw_line(number: int, points: Points, axes: Axes) -> str:
    """Draws one line, with a dot at each of its points if they are few."""
    color, dashes = _stroke(number)
    places = [axes.place(x, y) for x, y in points]
    path = " ".join(f"{x},{y}" for x, y in places)
    dash_attribute = f' stroke-dasharray="{dashes}"' if dashes else ""
    dots = ""
    if len(points) < FEW_POINTS:
        dots = "".join(f'<circle cx="{x}" cy="{y}" r="2.6" fill="{color}"/>' for x, y in places)
    line = f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dash_attribute}/>'
    return f'<g class="line" data-line="{number}">{line}{dots}</g>'


def _legend(series: Mapping[str, Points]) -> str:
    """The names of the lines with their last values."""
    if len(series) > MAX_LEGEND:
        return f'<div class="legend">{len(series)} lines; point at one to see its name</div>'
    entries = []
    for number, (name, points) in enumerate(series.items()):
        color, _ = _stroke(number)
        entries.append(
            f'<button type="button" data-line="{number}" title="hide or show"><i style="background:{color}"></i>'
            f"{escape(name)} <b>{points[-1][1]:.4g}</b></button>"
        )
    return f'<div class="legend">{"".join(entries)}</div>'


def line_chart(
    title: str, series: Mapping[str, Points], unit: str = "", x_name: str = "step", max_points: int = MAX_POINTS
) -> str:
    """Draws one chart as HTML, with a legend that names the last value of each line.

    `series` are {name: [(x, value), ...]} by ascending x; `unit` names the vertical axis and `x_name` the horizontal
    one. A line of more than `max_points` is thinned. Values that are not finite are left out; without any point the
    chart is empty text.
    """
    # What can be drawn.
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    drawn = {name: thinned(points, max_points) for name, points in finite.items() if points}
    if not drawn:
        return ""

    # The plot.
    axes = Axes([point for points in drawn.values() for point in points], x_name, unit)
    parts = axes.draw()
    parts += [_draw_line(number, points, axes) for number, points in enumerate(drawn.values())]

    # What the script of the page needs: the scales, and the values with six digits.
    plot = {
        "x": [axes.x_low, axes.x_high], "y": [axes.y_low, axes.y_high], "isLog": axes.is_log, "xName": x_name,
        "frame": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM],
        "lines": [
            {"name": name, "color": _stroke(number)[0], "points": [[x, float(f"{y:.6g}")] for x, y in points]}
            for number, (name, points) in enumerate(drawn.items())
        ],
    }  # fmt: skip
    return (
        f'<figure class="chart" data-plot="{escape(to_json(plot))}"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f"{_legend(drawn)}</figure>"
    )
