"""The numbers of text_readback, from what a reader reads in pictures and in what became of them.

Words that the reader misreads on the original say nothing about a tokenizer and are left out. Of the others,

    read_exact_h   fraction of the words of height h that are read exactly
    read_ned_h     mean of 1 - Levenshtein distance / length of the longer one

`read_exact` and `read_ned` are the means over all heights. The standard error of a height is sd / sqrt(pictures) of the
means per picture, because words of one picture share colors and place; its pictures are divided into the blocks of
`evaluations.metrics.blocks`, and differences of two networks follow from the values without each block. A block of the
mean over heights is that block of every height.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.world import World
from evaluations.metrics.blocks import NUM_BLOCKS, block_numbers
from evaluations.metrics.intervals import Estimate, of_images
from evaluations.metrics.registry import READ_BY_HEIGHT, READINGS
from evaluations.protocols.accumulators import Measurement
from evaluations.readback.degradation import ANCHORS

LEAST_READABLE = 0.5  # fraction of the words of a height that the reader must read on the originals
LEAST_WORDS = 100  # of a height that it reads on the originals
TOKENIZER = ""  # the name of what is measured, beside those of the anchors
VARIANTS = (TOKENIZER, *ANCHORS)
PER_PICTURE = ("words", "readable")  # counts in the table of pictures, before the sums of the variants


def levenshtein(first: str, second: str) -> int:
    """The least number of letters to insert, remove or replace that makes one text the other."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            above = row[j]
            row[j] = min(above + 1, row[j - 1] + 1, above_left + (letter != other))
            above_left = above
    return row[-1]


def likeness(read: str, truth: str) -> float:
    """1 - Levenshtein distance / length of the longer text: 1 for equal texts, 0 where nothing agrees."""
    return 1 - levenshtein(read, truth) / max(len(read), len(truth), 1)


class ReadingTable:
    """Counts and sums per picture. `heights` (int64, one per picture) are the heights of their letters.

    Each rank adds pictures of its own; `result` joins them.
    """

    def __init__(self, heights: Sequence[int]) -> None:
        self.heights = torch.tensor(heights)
        self.table = torch.zeros(len(heights), len(PER_PICTURE) + 2 * len(VARIANTS), dtype=torch.float64)

    def add(
        self, picture: int, truth: Sequence[str], original: Sequence[str], reads: Mapping[str, Sequence[str]]
    ) -> None:
        """Adds a picture: the words in it, what is read in the original, and in each of `VARIANTS`."""
        readable = [number for number, word in enumerate(truth) if original[number] == word]
        sums = []
        for variant in VARIANTS:
            pairs = [(reads[variant][number], truth[number]) for number in readable]
            sums += [sum(read == word for read, word in pairs), math.fsum(likeness(*pair) for pair in pairs)]
        self.table[picture] = torch.tensor([len(truth), len(readable), *sums], dtype=torch.float64)

    def result(self, world: World) -> Measurement:
        """The numbers over the pictures of all ranks. A collective."""
        table = world.sum(self.table.to(world.device)).cpu()
        rows = {height: table[self.heights == height] for height in self.heights.unique().tolist()}
        of_heights = {height: HeightScores(height, of_height) for height, of_height in rows.items()}
        measurement = Measurement()
        for variant in VARIANTS:
            for column, reading in enumerate(READINGS):
                _add_scores(named(reading, variant), (variant, column), of_heights, measurement)
        measurement.metrics[READ_BY_HEIGHT] = {str(height): scores.facts() for height, scores in of_heights.items()}
        return measurement


def named(reading: str, variant: str) -> str:
    """The name of a number: that of a tokenizer has no suffix."""
    return f"{reading}_{variant}" if variant else reading


class HeightScores:
    """The scores of one height, from its rows of the table of pictures."""

    def __init__(self, height: int, rows: Tensor) -> None:
        self.height = height
        self.rows = rows
        self.num_words, self.num_readable = (int(count) for count in rows[:, :2].sum(0))

    def problem(self) -> str | None:
        """Why there is no number of this height; None if there is one."""
        if self.num_readable < LEAST_READABLE * self.num_words:
            return (
                f"letters of {self.height} px: the reader reads {self.num_readable} of {self.num_words} words on the "
                f"originals, fewer than {LEAST_READABLE:.0%}"
            )
        if self.num_readable < LEAST_WORDS:
            return (
                f"letters of {self.height} px: the reader reads {self.num_readable} words on the originals, fewer than "
                f"{LEAST_WORDS}; measure more pictures"
            )
        return None

    def score(self, variant: str, column: int) -> Estimate:
        """Reading number `column` of a variant over the words of this height, with its error. It needs a readable word
        in two pictures or more, as 100 words are.
        """
        sums = self.rows[:, len(PER_PICTURE) + 2 * VARIANTS.index(variant) + column].numpy()
        counts = self.rows[:, 1].numpy()
        value = float(sums.sum() / counts.sum())

        # The error of the mean of the pictures with words, and the value over all words without each block.
        blocks = block_numbers(len(counts)).numpy()
        has_words = counts > 0
        of_pictures = of_images(sums[has_words] / counts[has_words], blocks[has_words])
        rest_sums = sums.sum() - np.bincount(blocks, sums, NUM_BLOCKS)
        rest_counts = counts.sum() - np.bincount(blocks, counts, NUM_BLOCKS)
        return replace(of_pictures, value=value, parts=tuple((rest_sums / rest_counts).tolist()))

    def facts(self) -> dict[str, Any]:
        """Counts of this height, and where there are numbers, each with its error, also those of the anchors."""
        facts: dict[str, Any] = {"words": self.num_words, "left_out": self.num_words - self.num_readable}
        if self.problem() is not None:
            return facts
        for variant in VARIANTS:
            for column, reading in enumerate(READINGS):
                name = named(reading, variant)
                score = self.score(variant, column)
                facts[name] = score.value
                facts |= {f"{name}_se": score.se, f"{name}_low": score.low, f"{name}_high": score.high}
        return facts


def _add_scores(
    name: str, column: tuple[str, int], of_heights: Mapping[int, HeightScores], measurement: Measurement
) -> None:
    """Adds one number: its mean over the heights, and of a tokenizer each height, with their errors."""
    problems = {height: problem for height, scores in of_heights.items() if (problem := scores.problem()) is not None}
    estimates = {height: scores.score(*column) for height, scores in of_heights.items() if height not in problems}
    if problems:
        reason = "a mean over all heights needs each of them: " + "; ".join(problems.values())
        measurement.unavailable[name] = reason
    else:
        measurement.add_estimate(name, mean_of_sets(list(estimates.values())))
    if column[0] != TOKENIZER:
        return
    for height, estimate in estimates.items():
        measurement.add_estimate(f"{name}_{height}", estimate)
    measurement.unavailable |= {f"{name}_{height}": problem for height, problem in problems.items()}


def mean_of_sets(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of numbers over disjoint sets of pictures: their errors are independent."""
    count = len(estimates)
    return Estimate(
        value=sum(estimate.value for estimate in estimates) / count,
        se=math.sqrt(sum(estimate.se**2 for estimate in estimates)) / count,
        freedom=sum(estimate.freedom for estimate in estimates),
        form="images",
        parts=tuple(np.mean([estimate.parts for estimate in estimates], axis=0).tolist()),
    )
