"""Line charts as inline SVG, for reports that are one self-contained HTML file.

A chart is complete without a script. With that of the page (page.js), it also shows the values under the pointer, and
a click into its legend hides a line.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

from engine.json_text import to_json
from evaluations.report.number_text import fixed_texts

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

# A vertical axis that few points stretch is that of the others, on a chart that may zoom.
ZOOM_QUANTILE = 0.05  # of all points, at most, lie outside at either end
ZOOM_RATIO = 2.0  # of the range of all points to that between the quantiles, above which a chart zooms
ZOOM_MARGIN = 0.15  # of the range between the quantiles, beyond them

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


def central_range(values: Sequence[float]) -> tuple[float, float] | None:
    """The range of most of the values, where few others stretch that of all; None where they do not."""
    if len(values) < FEW_POINTS:
        return None
    ordered = sorted(values)
    inner = max(1, round(ZOOM_QUANTILE * len(ordered)))
    low, high = ordered[inner], ordered[-1 - inner]  # without the outermost ones, at least one at either end
    if high <= low or ordered[-1] - ordered[0] <= ZOOM_RATIO * (high - low):
        return None
    margin = ZOOM_MARGIN * (high - low)
    return max(ordered[0], low - margin), min(ordered[-1], high + margin)


class Axes:
    """The scales of a chart: from steps and values to SVG coordinates.

    `y_range` is that of the vertical axis, by default the range of the points.
    """

    def __init__(self, points: Points, x_name: str, y_name: str, y_range: tuple[float, float] | None = None) -> None:
        self.x_name = x_name
        self.y_name = y_name
        xs = [x for x, _ in points]
        ys = y_range or [y for _, y in points]

        # A single step stands at the left, and is the only one that is named.
        self.x_low = min(xs)
        self.x_high = max(xs) if max(xs) > min(xs) else min(xs) + 1
        all_x_ticks = nice_ticks(min(xs), max(xs)) if max(xs) > min(xs) else [min(xs)]
        self.x_ticks = [tick for tick in all_x_ticks if self.x_low <= tick <= self.x_high]

        # Values of very different sizes, such as those of a run that diverged, stand on a logarithmic axis.
        self.is_log = y_range is None and min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
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

    def draw_values(self) -> str:
        """Draws grid lines with the values at their left."""
        parts = []
        for tick in self.y_ticks:
            _, y = self.place(self.x_low, tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick_text(tick)}</text>')
        return "".join(parts)

    def draw_steps(self) -> str:
        """Draws the steps below, and the names of both axes."""
        parts = []
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
        return "".join(parts)


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
    last = [points[-1][1] for points in series.values()]
    texts = fixed_texts(last) if len(last) > 1 else [f"{last[0]:.4g}"]
    entries = []
    for number, (name, text) in enumerate(zip(series, texts, strict=True)):
        color, _ = _stroke(number)
        entries.append(
            f'<button type="button" data-line="{number}" title="hide or show"><i style="background:{color}"></i>'
            f"{escape(name)} <b>{text}</b></button>"
        )
    return f'<div class="legend">{"".join(entries)}</div>'


def _outside_note(points: Points, axes: Axes, unit: str) -> str:
    """How many points lie outside of a zoomed axis, and how far, with a button that shows them."""
    low, high = axes.y_ticks[0], axes.y_ticks[-1]
    outside = [y for _, y in points if not low <= y <= high]
    ends = [f"down to {min(outside):.4g}"] if outside and min(outside) < low else []
    ends += [f"up to {max(outside):.4g}"] if outside and max(outside) > high else []
    count = f"{len(outside)} of {len(points)} points lie outside, {' and '.join(ends)} {unit}".strip()
    return f'<p class="zoom">Zoomed: {escape(count)}. <button type="button" aria-pressed="false">show all</button></p>'


def line_chart(
    title: str,
    series: Mapping[str, Points],
    unit: str = "",
    x_name: str = "step",
    max_points: int = MAX_POINTS,
    *,
    may_zoom: bool = False,
) -> str:
    """Draws one chart as HTML, with a legend that names the last value of each line.

    `series` are {name: [(x, value), ...]} by ascending x; `unit` names the vertical axis and `x_name` the horizontal
    one. A line of more than `max_points` is thinned. Values that are not finite are left out; without any point the
    chart is empty text. With `may_zoom` the vertical axis shows the range of most points where few others stretch it,
    which the chart then says; a click shows all.
    """
    # What can be drawn.
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    drawn = {name: thinned(points, max_points) for name, points in finite.items() if points}
    if not drawn:
        return ""

    # The axes, and a second vertical one where the chart is zoomed.
    points = [point for points in drawn.values() for point in points]
    full = axes = Axes(points, x_name, unit)
    zoom = central_range([y for _, y in points]) if may_zoom and not full.is_log else None
    if zoom is not None:
        axes = Axes(points, x_name, unit, zoom)
    is_zoomed = any(not axes.y_ticks[0] <= y <= axes.y_ticks[-1] for _, y in points)

    # The plot. Lines of a zoomed one end at its frame.
    lines = "".join(_draw_line(number, points, axes) for number, points in enumerate(drawn.values()))
    values = axes.draw_values()
    note = ""
    if is_zoomed:
        frame = f"clip-{hashlib.sha256(f'{title}{lines}'.encode()).hexdigest()[:12]}"
        lines = (
            f'<clipPath id="{frame}"><rect x="{LEFT - 4}" y="{TOP - 4}" width="{WIDTH - LEFT - RIGHT + 8}" '
            f'height="{HEIGHT - TOP - BOTTOM + 8}"/></clipPath><g clip-path="url(#{frame})">{lines}</g>'
        )
        values = f'<g class="values-axis">{values}</g><g class="values-axis off">{full.draw_values()}</g>'
        note = _outside_note(points, axes, unit)

    # What the script of the page needs: the scales, and the values with six digits.
    plot = {
        "x": [axes.x_low, axes.x_high], "y": [axes.y_low, axes.y_high], "isLog": axes.is_log, "xName": x_name,
        "otherY": [full.y_low, full.y_high], "frame": [LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM],
        "lines": [
            {"name": name, "color": _stroke(number)[0], "points": [[x, float(f"{y:.6g}")] for x, y in points]}
            for number, (name, points) in enumerate(drawn.items())
        ],
    }  # fmt: skip
    return (
        f'<figure class="chart" data-plot="{escape(to_json(plot))}"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{values}{axes.draw_steps()}{lines}</svg>{note}{_legend(drawn)}</figure>"
    )
