"""The figures of a paper as pairs of quantities, and what is drawn where nobody asks for anything.

A panel of a paper that shows a published distance takes what the results hold: where they hold no rFID, the distance of
another extractor, under its own name, and the page says so. Where the paper has two vertical scales in one panel, both
lines stand on one here: two scales can be made to show any relation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluations.metrics.registry import (
    METRICS,
    PUBLISHED_DISTANCE,
    UNPUBLISHED_SUFFIX,
    headline_metrics,
    title,
)
from evaluations.scaling.quantities import Quantity, quantity_of
from evaluations.scaling.readings import AR_PROBE, Point
from evaluations.scaling.sizes import SIZES, SizedTokenizer

MAX_DEFAULT = 8  # panels where nobody asks for any


@dataclass(frozen=True)
class Distance:
    """The distance of reconstructions or generated images that the results hold; the published one where they do."""

    measured: Literal["reconstruction", "generation"]
    pattern: str = ""  # of results, as in a quantity

    def candidates(self) -> Iterator[str]:
        """The names under which it may stand, the published one first."""
        yield PUBLISHED_DISTANCE[self.measured]
        ending = f"_{UNPUBLISHED_SUFFIX[self.measured]}"
        yield from (name for name in METRICS if name.endswith(ending))

    def chosen(self, points: Sequence[Point]) -> Quantity:
        """The one that most points have, the published one where none has any."""
        quantities = [quantity_of(f"{self.pattern}/{name}".lstrip("/")) for name in self.candidates()]
        return max(quantities, key=lambda quantity: sum(quantity.is_in(point) for point in points))

    def note(self, quantity: Quantity) -> str:
        """What a reader of the paper should know about it."""
        published = PUBLISHED_DISTANCE[self.measured]
        if quantity.metric == published:
            return ""
        return f"The paper shows {title(published)} here; these results hold {title(quantity.metric)} instead."


Asked = Distance | str

# What AR probing says about a tokenizer, and what is known of it otherwise.
RECONSTRUCTED = Distance("reconstruction")
PROBED = Distance("generation", AR_PROBE)
GENERATED = Distance("generation")
PROBE_LOSS = f"{AR_PROBE}/val_loss"
PROBE_TOP1 = f"{AR_PROBE}/top1"
TOP1 = "linear_probe_gpt/top1"
ENCODER_TOP1 = "linear_probe_tokenizer/top1"


@dataclass(frozen=True)
class Figure:
    """A figure of a paper: its pairs (vertical, horizontal), and what it is about."""

    about: str
    pairs: tuple[tuple[Asked, Asked], ...]


FIGURES = {
    "gigatok_3": Figure(
        "GigaTok, figure 3: reconstruction, and generation and loss of AR probing, over the size of tokenizers",
        ((RECONSTRUCTED, "parameters"), (PROBED, "parameters"), (PROBE_LOSS, "parameters")),
    ),
    "gigatok_6": Figure(
        "GigaTok, figure 6: AR probing of tokenizers against larger generators of their codes",
        ((GENERATED, PROBED), (GENERATED, PROBE_LOSS), (TOP1, PROBE_TOP1)),
    ),
    "gigatok_7": Figure(
        "GigaTok, figure 7: reconstruction and AR probing over the size of tokenizers, such as with and without "
        "semantic regularization",
        (
            (RECONSTRUCTED, "parameters"), (PROBED, "parameters"),
            (PROBE_LOSS, "parameters"), (PROBE_TOP1, "parameters"),
        ),
    ),
    "gigatok_12": Figure(
        "GigaTok, figure 12: reconstruction and AR probing over the duration of training, of separate trainings",
        ((RECONSTRUCTED, "images"), (PROBED, "images"), (PROBE_LOSS, "images"), (PROBE_TOP1, "images")),
    ),
    "gigatok_13": Figure(
        "GigaTok, figure 13: the linear probe of an encoder beside AR probing, over the checkpoints of a run",
        ((ENCODER_TOP1, "steps"), (PROBE_TOP1, "steps"), (PROBED, "steps"), (RECONSTRUCTED, "steps")),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is drawn
@dataclass(frozen=True)
class Pair:
    """What one panel shows."""

    y: Quantity
    x: Quantity
    note: str = ""


def pairs_of_figure(figure: Figure, points: Sequence[Point]) -> list[Pair]:
    """The panels of a figure over some points."""
    pairs = []
    for asked in figure.pairs:
        quantities, notes = [], []
        for wanted in asked:
            quantity = wanted.chosen(points) if isinstance(wanted, Distance) else quantity_of(wanted)
            quantities.append(quantity)
            notes += [wanted.note(quantity)] if isinstance(wanted, Distance) else []
        pairs.append(Pair(*quantities, " ".join(filter(None, notes))))
    return pairs


def typed_pair(text: str) -> Pair:
    """A pair as it is typed, `rfid:parameters`: the vertical number, then the horizontal one."""
    y, _, x = text.partition(":")
    return Pair(quantity_of(y), quantity_of(x))


def default_pairs(sized: Sequence[tuple[Point, SizedTokenizer]]) -> list[Pair]:
    """Every headline number that says something about quality, over the first size in which the points differ."""
    size = quantity_of(next((name for name in SIZES if _differs(quantity_of(name), sized)), next(iter(SIZES))))
    points = [point for point, _ in sized]
    having = [quantity for metric in headline_metrics() for quantity in _forms(metric, points)]
    return [Pair(quantity, size) for quantity in having][:MAX_DEFAULT]


def _forms(metric: str, points: Sequence[Point]) -> list[Quantity]:
    """A metric outside of AR probing, and of it, each in the shortest form that names one result of several points."""
    if METRICS[metric].better is None:
        return []
    forms: dict[bool, Quantity] = {}
    for measured in (measured for point in points for measured in point.results):
        if metric not in measured.quality:
            continue
        inside = measured.is_of_ar_probe
        for name in ((f"{AR_PROBE}/{metric}" if inside else metric), f"{measured.place}/{metric}".lstrip("/")):
            quantity = quantity_of(name)
            if sum(map(quantity.is_in, points)) > 1:
                forms.setdefault(inside, quantity)
    return [forms[inside] for inside in sorted(forms)]


def _differs(size: Quantity, sized: Sequence[tuple[Point, SizedTokenizer]]) -> bool:
    """Whether a size is known of all points, and not the same for all."""
    numbers = [size.number_of(point, tokenizer) for point, tokenizer in sized]
    return None not in numbers and len(set(numbers)) > 1
