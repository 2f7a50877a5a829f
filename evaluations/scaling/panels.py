"""A panel: one number of every point against another, as far as these numbers may be compared.

Points whose numbers were measured under another protocol, and numbers that were forced, are left out and named. On
request they are drawn hollow; they are never joined by a line, and never count in a correlation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.counts import counted
from engine.messages import UserError
from evaluations.metrics.rank_correlation import MIN_POINTS, RankCorrelation, rank_correlation
from evaluations.scaling.quantities import Quantity, Value, why_not_comparable
from evaluations.scaling.readings import Point
from evaluations.scaling.sizes import SIZES, SizedTokenizer

MAX_REASONS = 3  # facts that differ, which a line names


@dataclass(frozen=True)
class Dot:
    """A point of a panel."""

    point: Point
    x: Value
    y: Value
    objections: tuple[str, ...] = ()  # why it may not be compared with the others

    @property
    def is_comparable(self) -> bool:
        """Whether it counts in lines and correlations."""
        return not self.objections


@dataclass(frozen=True)
class Panel:
    """What one picture shows."""

    x: Quantity
    y: Quantity
    dots: tuple[Dot, ...]  # that are drawn
    left_out: tuple[str, ...]  # what is not drawn, and why; or is drawn hollow
    note: str = ""  # what a reader of the paper should know

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{self.y.short_title} against {self.x.short_title}"

    @property
    def file_name(self) -> str:
        """Its name for a file, without an ending."""
        words = f"{self.y.text}-{self.x.text}".replace("/", "_").replace("*", "")
        return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in words)

    @property
    def is_trend(self) -> bool:
        """Whether its points are joined in the order of x, which is then a size."""
        return self.x.is_size

    @property
    def series(self) -> list[str]:
        """The series with points in it, in their order."""
        return list(dict.fromkeys(dot.point.series for dot in self.dots))

    @property
    def compared(self) -> list[Dot]:
        """The points that may be compared."""
        return [dot for dot in self.dots if dot.is_comparable]

    @cached_property
    def agreements(self) -> list[Agreement]:
        """The rank correlation of each series, and of all points together where there are several series."""
        groups: Mapping[str, list[Dot]] = {
            name: [dot for dot in self.compared if dot.point.series == name] for name in self.series
        }
        found = [_agreement(name or "all points", dots) for name, dots in groups.items()]
        if len(groups) > 1:
            found.append(_agreement("all points", self.compared))
        return found

    @property
    def unknown_errors(self) -> int:
        """How many points have a metric without an error."""
        values = [(dot.x, dot.y) for dot in self.dots]
        return sum(any(v.half_width is None and not v.is_exact for v in pair) for pair in values)


# ------------------------------------------------------------------------------------------------ which points
def make_panel(
    x: Quantity, y: Quantity, sized: Sequence[tuple[Point, SizedTokenizer]], shows_all: bool, note: str = ""
) -> Panel:
    """The panel of two quantities. With `shows_all`, numbers that may not be compared are drawn hollow."""
    # Points that have both numbers.
    dots, left_out = [], []
    for point, tokenizer in sized:
        try:
            dots.append(Dot(point, x.read(point, tokenizer), y.read(point, tokenizer)))
        except UserError as error:
            left_out.append(f"{point.label}: {error}")

    # Of these, which may be compared.
    judged = [*_judged(x, y, dots)]
    drawn = [dot for dot in judged if dot.is_comparable or shows_all]
    place = "drawn hollow" if shows_all else "left out"
    left_out += [
        f"{dot.point.label}, {place}: {'; '.join(dot.objections[:MAX_REASONS])}"
        for dot in judged
        if not dot.is_comparable
    ]
    return Panel(x, y, tuple(drawn), tuple(left_out), note)


def _judged(x: Quantity, y: Quantity, dots: Sequence[Dot]) -> Iterator[Dot]:
    """The points with the reasons why they may not be compared with the largest group of those that may."""
    groups: list[list[Dot]] = []
    for dot in dots:
        if _forced(x, y, dot):
            continue
        group = next((group for group in groups if not _differences(x, y, group[0], dot)), None)
        if group is None:
            groups.append([dot])
        else:
            group.append(dot)
    largest = max(groups, key=len, default=[])  # of equally large ones, the first
    for dot in dots:
        differences = _differences(x, y, largest[0], dot) if largest else []
        yield Dot(dot.point, dot.x, dot.y, (*_forced(x, y, dot), *differences))


def _forced(x: Quantity, y: Quantity, dot: Dot) -> list[str]:
    """Which numbers of a point were forced, and why."""
    reasons = []
    for quantity, value in ((x, dot.x), (y, dot.y)):
        reason = value.measured.result.get("forced", {}).get(quantity.metric) if value.measured is not None else None
        if reason is not None:
            reasons.append(f"{quantity.metric} was forced ({reason})")
    return reasons


def _differences(x: Quantity, y: Quantity, first: Dot, second: Dot) -> list[str]:
    """The facts in which the protocols of two points differ, in either number."""
    pairs = ((x, first.x, second.x), (y, first.y, second.y))
    lines = [
        text
        for quantity, one, other in pairs
        if one.measured is not None and other.measured is not None
        for text in why_not_comparable(quantity.metric, one.measured, other.measured)
    ]
    lines += [
        f"a loss per token: of {one.codes}, then of {other.codes}"
        for _, one, other in pairs
        if one.codes != other.codes
    ]
    return list(dict.fromkeys(lines))


# ------------------------------------------------------------------------------------------------ correlations
@dataclass(frozen=True)
class Agreement:
    """How far the order of some points by one number is that by the other."""

    name: str  # of the series, or of all
    correlation: RankCorrelation | None  # None where it cannot be given
    reason: str = ""  # why
    are_independent: bool = True  # every point is a training of its own

    @property
    def text(self) -> str:
        """A sentence."""
        if self.correlation is None:
            return f"{self.name}: no rank correlation: {self.reason}."
        found = self.correlation
        value = f"{self.name}: Spearman's rank correlation {found.value:+.2f} of {found.count} points"
        if not self.are_independent:
            return f"{value}. Checkpoints of one training are not independent, so there is no interval."
        interval = f"95 % interval {found.low:+.2f} to {found.high:+.2f}"
        chance = f"a random order agrees or disagrees as much with probability {found.p_value:.2g}"
        return f"{value}, {interval}; {chance}."


def _agreement(name: str, dots: Sequence[Dot]) -> Agreement:
    """The rank correlation of some points."""
    if len(dots) < MIN_POINTS:
        return Agreement(name, None, f"{counted(len(dots), 'comparable point')}, and it takes {MIN_POINTS}")
    trainings = {dot.point.training for dot in dots}
    try:
        correlation = rank_correlation([dot.x.number for dot in dots], [dot.y.number for dot in dots])
    except ValueError as error:
        return Agreement(name, None, str(error))
    return Agreement(name, correlation, are_independent=len(trainings) == len(dots))


def names_checkpoints(quantity: Quantity) -> bool:
    """Whether an axis already tells the checkpoints of a training apart."""
    return quantity.is_size and SIZES[quantity.text].names_checkpoints
