"""Line charts as inline SVG, for reports that are one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

# Size of a chart and of the margins around its plot, in SVG units.
WIDTH = 460
HEIGHT = 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 34

COLORS = ("#2563eb", "#e11d48", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f", "#78716c")
FEW_POINTS = 12  # lines with fewer points than this also show each point as a dot

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


class Axes:
    """The scales of a chart: from steps and values to SVG coordinates."""

    def __init__(self, points: Points) -> None:
        xs = [x for x, _ in points]
        ys = [y for _, y in points]
        self.x_low = min(xs)
        self.x_high = max(max(xs), min(xs) + 1)
        self.y_ticks = nice_ticks(min(ys), max(ys))
        self.y_low = self.y_ticks[0]
        self.y_high = self.y_ticks[-1]
        all_x_ticks = nice_ticks(min(xs), max(xs))
        self.x_ticks = [tick for tick in all_x_ticks if self.x_low <= tick <= self.x_high]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """SVG coordinates of a point, from the left and from the top."""
        right = LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (self.y_high - y) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)
        return round(right, 1), round(down, 1)

    def draw(self) -> list[str]:
        """Draws grid lines with the values at their left, and steps below."""
        parts = []
        for tick in self.y_ticks:
            _, y = self.place(self.x_low, tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
        for tick in self.x_ticks:
            x, _ = self.place(tick, self.y_low)
            parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
        return parts


def _draw_line(points: Points, color: str, axes: Axes) -> list[str]:
    """Draws one line, with a dot at each of its points if they are few."""
    places = [axes.place(x, y) for x, y in points]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>']
    if len(points) < FEW_POINTS:
        parts += [f'<circle cx="{x}" cy="{y}" r="2.6" fill="{color}"/>' for x, y in places]
    return parts


def line_chart(title: str, series: Mapping[str, Points], unit: str = "") -> str:
    """Draws one chart as HTML, with a legend that names the last value of each line.

    `series` are {name: [(step, value), ...]}. Values that are not finite are left out; without any point the chart is
    empty text.
    """
    # What can be drawn, with the color of each line.
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(finite)}

    # The plot.
    axes = Axes([point for points in finite.values() for point in points])
    parts = axes.draw()
    for name, points in finite.items():
        parts += _draw_line(points, colors[name], axes)

    # The frame around it.
    legend = "".join(
        f'<span><i style="background:{colors[name]}"></i>{escape(name)} <b>{points[-1][1]:.4g}</b></span>'
        for name, points in finite.items()
    )
    label = f" ({escape(unit)})" if unit else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{label}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )
