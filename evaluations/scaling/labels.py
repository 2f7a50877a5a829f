"""Where the names of points stand in a picture, so that they hide neither points nor each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LETTER = 5.6  # width of a letter of the names, in SVG units: wide enough for most
HEIGHT = 11.0  # of a line of text
GAP = 8.0  # between a point and its name
MARKER = 5.0  # half of the side of the square that a point takes

# Places of a name around its point, the best first: (to the right, downwards, where the text is anchored).
PLACES = (
    (GAP, 4, "start"), (0, -GAP, "middle"), (0, GAP + 9, "middle"), (-GAP, 4, "end"),
    (GAP, -GAP, "start"), (-GAP, -GAP, "end"), (GAP, GAP + 9, "start"), (-GAP, GAP + 9, "end"),
)  # fmt: skip


@dataclass(frozen=True)
class Box:
    """A rectangle, from the left and from the top."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def outside(self, frame: Box) -> float:
        """The area that does not lie in a frame."""
        area = (self.right - self.left) * (self.bottom - self.top)
        return area - self.overlap(frame)


@dataclass(frozen=True)
class Label:
    """A name at its place."""

    text: str
    x: float
    y: float  # of the line on which the letters stand
    anchor: str  # start | middle | end

    @property
    def box(self) -> Box:
        """The room that it takes."""
        width = LETTER * len(self.text)
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Box(left, self.y - HEIGHT + 2, left + width, self.y + 2)


def place_labels(
    names: Sequence[str], places: Sequence[tuple[float, float]], frame: Box, taken: Sequence[Box] = ()
) -> list[Label]:
    """One label for each name, at the place around its point where it hides least, in the order of the names.

    `places` are the points; `taken` is other room that labels should not take, such as that of error bars.
    """
    markers = [Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER) for x, y in places]
    chosen: list[Label] = []
    for name, (x, y) in zip(names, places, strict=True):
        candidates = [Label(name, x + right, y + down, anchor) for right, down, anchor in PLACES]
        others = [*markers, *taken, *(label.box for label in chosen)]

        def hidden(label: Label, others: Sequence[Box] = others) -> float:
            box = label.box
            return 10 * box.outside(frame) + sum(box.overlap(other) for other in others)

        chosen.append(min(candidates, key=hidden))  # of equally good places, the first
    return chosen
