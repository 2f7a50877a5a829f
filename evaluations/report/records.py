"""The records of a training that a page names: titles, units, which direction is better, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluations.report.number_text import fixed_texts

Records = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class RecordedValue:
    """A value in the records of trainings."""

    key: str  # in metrics.jsonl
    title: str  # for people
    better: Literal["lower", "higher"] | None = None
    unit: str = ""
    percent: bool = False  # a fraction in 0..1, shown in percent
    meaning: str = ""  # in a few words, for a card
    is_validation: bool = True  # of held-out images; a table of runs shows these first
    is_of_codes: bool = False  # a fraction of the codes of a codebook

    @property
    def full_title(self) -> str:
        """The title with its unit, such as "PSNR, dB"."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def explanation(self) -> str:
        """What the value says, and which direction is better."""
        return f"{self.meaning}; {self.better} is better" if self.better is not None else self.meaning

    def text(self, value: float) -> str:
        """The value as people read it, without the unit."""
        return self.texts([value])[0]

    def texts(self, values: Sequence[float]) -> list[str]:
        """Several values as people read them in a column: with equally many decimals, without the unit."""
        return [f"{value:.1%}" for value in values] if self.percent else fixed_texts(values)

    def best_of(self, values: Sequence[float]) -> float | None:
        """The best of several values; None where neither direction is better, or there is nothing to choose from."""
        finite = [value for value in values if math.isfinite(value)]
        if self.better is None or len(finite) < 2:
            return None
        return min(finite) if self.better == "lower" else max(finite)


# Averaged weights, which a training keeps beside those that it trains.
EMA = "the average of the weights over the last steps (EMA)"

# In the order of cards and columns.
RECORDED_VALUES = (
    RecordedValue(
        "val/psnr", "validation PSNR", "higher", unit="dB", meaning="held-out pixels; 20 is coarse, 30 is close"
    ),
    RecordedValue("val/loss", "validation loss", "lower", meaning="on held-out images"),
    RecordedValue(
        "val/loss_bound", "bound of the validation loss", "lower", meaning="on held-out images, of a masked generator"
    ),
    RecordedValue(
        "val/accuracy",
        "validation accuracy",
        "higher",
        percent=True,
        meaning="held-out images classified correctly",
    ),
    RecordedValue(
        "val_ema/psnr", "validation PSNR of the EMA", "higher", unit="dB", meaning=f"{EMA}, on held-out pixels"
    ),
    RecordedValue("val_ema/loss", "validation loss of the EMA", "lower", meaning=f"{EMA}, on held-out images"),
    RecordedValue(
        "val_ema/loss_bound", "bound of the validation loss of the EMA", "lower", meaning=f"{EMA}, on held-out images"
    ),
    RecordedValue(
        "val/codebook_usage",
        "codebook usage",
        "higher",
        percent=True,
        is_of_codes=True,
        meaning="codes that occur in held-out images",
    ),
    RecordedValue("loss", "training loss", "lower", meaning="sum of all weighted terms", is_validation=False),
    RecordedValue(
        "images_per_second",
        "images per second",
        meaning="speed of training, of all processes together; it depends on the machine and what else runs there",
        is_validation=False,
    ),
)

# By their keys.
VALUES = {value.key: value for value in RECORDED_VALUES}


def newest_values(records: Records) -> dict[str, float]:
    """{key: value} of the newest record of each of `RECORDED_VALUES`, in their order."""
    newest: dict[str, float] = {}
    for record in records:
        newest |= {value.key: record[value.key] for value in RECORDED_VALUES if value.key in record}
    return {value.key: newest[value.key] for value in RECORDED_VALUES if value.key in newest}


def best_step(records: Records, value: RecordedValue) -> tuple[int, float] | None:
    """(step, value) of the best record; None where no direction is better or there are fewer than two."""
    points = [(record["step"], record[value.key]) for record in records if value.key in record]
    best = value.best_of([number for _, number in points])
    return next(((int(step), number) for step, number in points if number == best), None)
