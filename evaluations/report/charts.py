"""Line charts as inline SVG, without a plotting library: for reports that are one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 460, 250


LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 34


COLORS = ("#2563eb", "#e11d48", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f", "#78716c")


Series = Mapping[str, Sequence[tuple[float, float]]]


def nice_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that cover low..high."""
    if not high > low:
        margin = max(0.5, abs(low) * 1e-3)
        low, high = low - margin, high + margin
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(title: str, series: Series, unit: str = "") -> str:
    """One chart with a legend; series are {name: [(step, value), ...]}.

    Non-finite values are left out; without any point the chart is empty text.
    """
    finite = {n: [(x, y) for x, y in points if math.isfinite(y)] for n, points in series.items()}
    finite = {n: points for n, points in finite.items() if points}
    if not finite:
        return ""
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs)), nice_ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(right, 1), round(down, 1)

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x, _ = place(tick, y_low)
            parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for i, points in enumerate(finite.values()):
        colour = COLORS[i % len(COLORS)]
        path = " ".join(f"{x},{y}" for x, y in (place(*p) for p in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(points) < 12:
            parts += [
                f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}"/>' for x, y in (place(*point) for point in points)
            ]
    legend = "".join(
        f'<span><i style="background:{COLORS[i % len(COLORS)]}"></i>{escape(name)} <b>{points[-1][1]:.4g}</b></span>'
        for i, (name, points) in enumerate(finite.items())
    )
    label = f" ({escape(unit)})" if unit else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{label}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )
