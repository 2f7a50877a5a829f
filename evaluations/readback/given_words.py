"""Scores of words that somebody else has read in somebody else's pictures: T-ACC and T-NED of TokBench.

TokBench (arXiv:2505.18142) reads the words of real pictures with docTR's PARSeq after a tokenizer. Its pictures, its
annotations and that reader are not part of this program: it scores the strings that are given. By the released code,

    T-ACC   fraction of words that are read exactly, with upper and lower case told apart
    T-NED   mean of 1 - Levenshtein distance / length of the longer one

Words are grouped by the `ratio` of their annotation, in half-open intervals that depend on the setting. Words below the
first bound are left out. The number of a setting is the unweighted mean of its three groups.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from engine.messages import UserError
from evaluations.metrics.blocks import NUM_BLOCKS, block_numbers
from evaluations.metrics.intervals import Estimate, of_images
from evaluations.protocols.accumulators import Measurement
from evaluations.readback.score import likeness, mean_of_sets

# Setting (side of the pictures in pixels) -> bounds of the ratio of a word, the last of which ends the last group.
GROUPS: dict[int, tuple[float, ...]] = {
    256: (0.02, 0.03, 0.04, 1.0),
    512: (0.01, 0.02, 0.03, 1.0),
    1024: (0.005, 0.01, 0.02, 1.0),
}
KEYS = ("image", "ratio", "read", "truth")
SCORES = ("t_acc", "t_ned")


@dataclass(frozen=True)
class GivenWord:
    """A word of an annotation, and what was read in its place."""

    image: str
    ratio: float
    read: str
    truth: str

    def scores(self) -> tuple[float, float]:
        """(whether it is read exactly, 1 - distance / length): the order of SCORES."""
        return float(self.read == self.truth), likeness(self.read, self.truth)


# ------------------------------------------------------------------------------------------------ files
def read_given_words(path: Path, flag: str) -> list[GivenWord]:
    """The words of a .json file, or of all .json files of a folder; the file's name is the image where none is named.

    A file holds a list of {"image": name, "ratio": number, "read": text, "truth": text}. `flag` names the path in
    errors. Raises UserError for anything else.
    """
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{flag} {path} holds no .json file; each is a list of objects with {', '.join(KEYS)}")
    words: list[GivenWord] = []
    for file in files:
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{flag}: {file} is not readable JSON: {error}") from error
        if not isinstance(entries, list):
            raise UserError(f"{flag}: {file} holds a {type(entries).__name__}; a list of words is needed")
        words += [_word(entry, f"{flag}: {file}, word {number}", file.stem) for number, entry in enumerate(entries)]
    if not words:
        raise UserError(f"{flag} {path} holds no word")
    return words


def _word(entry: Any, where: str, image: str) -> GivenWord:
    """One word. Raises UserError, which says `where` it stands, for an entry that is none."""
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r:.60}; an object with {', '.join(KEYS)} is needed")
    entry = {"image": image, **entry}
    missing = [key for key in KEYS if key not in entry]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; it has {', '.join(map(str, entry)) or 'nothing'}")
    ratio, read, truth = entry["ratio"], entry["read"], entry["truth"]
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not (math.isfinite(ratio) and ratio >= 0):
        raise UserError(f"{where}: ratio={ratio!r} must be a number from 0")
    if not (isinstance(read, str) and isinstance(truth, str) and truth):
        raise UserError(f"{where}: read={read!r:.40} and truth={truth!r:.40} must be texts, and truth not empty")
    return GivenWord(str(entry["image"]), float(ratio), read, truth)


# ------------------------------------------------------------------------------------------------ scores
def group_of(ratio: float, bounds: Sequence[float]) -> int | None:
    """The number of the group, from 0, whose half-open interval [from, to) holds a ratio; None outside of all."""
    for group, (low, high) in enumerate(pairwise(bounds)):
        if low <= ratio < high:
            return group
    return None


Groups = Sequence[Mapping[str, Sequence[tuple[float, float]]]]  # of each group: image -> the scores of its words


def score_words(words: Iterable[GivenWord], setting: int) -> tuple[Measurement, dict[str, Any]]:
    """(the numbers of a setting with their errors, facts about the groups).

    The standard error of a group is sd / sqrt(images) of the means per image, because words of one image are alike; a
    group of one image has none. A number whose group is empty is unavailable.
    """
    bounds = GROUPS[setting]
    groups: list[dict[str, list[tuple[float, float]]]] = [{} for _ in bounds[1:]]
    num_left_out = 0
    for word in words:
        group = group_of(word.ratio, bounds)
        if group is None:
            num_left_out += 1
        else:
            groups[group].setdefault(word.image, []).append(word.scores())

    measurement = Measurement()
    for column, name in enumerate(SCORES):
        _add_score(name, column, groups, measurement)
    facts = {
        "bounds": list(bounds),
        "words": [sum(map(len, images.values())) for images in groups],
        "images": [len(images) for images in groups],
        "left_out": num_left_out,
    }
    return measurement, facts


def _add_score(name: str, column: int, groups: Groups, measurement: Measurement) -> None:
    """Adds one score: of each group, and the unweighted mean of the groups."""
    values, estimates = [], []
    for number, images in enumerate(groups):
        part = f"{name}_group_{number}"
        if not images:
            measurement.unavailable[part] = "no word is in this group"
            continue
        value, estimate = _group_score(images, column)
        values.append(value)
        measurement.metrics[part] = value
        if estimate is not None:
            estimates.append(estimate)
            measurement.errors[part] = estimate

    # The mean needs every group, and its error that of every group.
    if len(values) < len(groups):
        measurement.unavailable[name] = "a group without words leaves no mean of all groups"
        return
    measurement.metrics[name] = float(np.mean(values))
    if len(estimates) == len(groups):
        measurement.errors[name] = mean_of_sets(estimates)


def _group_score(images: Mapping[str, Sequence[tuple[float, float]]], column: int) -> tuple[float, Estimate | None]:
    """The mean of a score over the words of a group, and its error; None for a single image.

    Images are divided into blocks by their sorted names, whatever the order of the file.
    """
    rows = [[scores[column] for scores in images[name]] for name in sorted(images)]
    sums, counts = np.array([math.fsum(row) for row in rows]), np.array([len(row) for row in rows])
    value = float(sums.sum() / counts.sum())
    if len(rows) < 2:
        return value, None

    # The error of the mean of the images, and the value over all words without each block.
    blocks = block_numbers(len(rows)).numpy()
    rest_sums = sums.sum() - np.bincount(blocks, sums, NUM_BLOCKS)
    rest_counts = counts.sum() - np.bincount(blocks, counts, NUM_BLOCKS)
    parts = tuple((rest_sums / rest_counts).tolist())
    return value, replace(of_images(sums / counts, blocks), value=value, parts=parts)
