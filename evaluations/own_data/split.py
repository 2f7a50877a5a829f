"""Which images are held out: a tenth of each class, by a rule that does not move when images are added."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict

from engine.data.held_out import listable
from evaluations.own_data.duplicates import unique_images
from evaluations.own_data.survey import Survey

DEFAULT_SHARE = 0.1
MAX_HELD_OUT = 500  # more do not make a validation much more precise, and training lacks them
RULE = (
    "Held-out images: readable, unlike any other image pixel by pixel, and those of each class",
    "whose names have the smallest SHA-256. Images that are added later are trained on.",
)


def held_out_names(survey: Survey, share: float = DEFAULT_SHARE) -> list[str]:
    """The names of the held-out images, in the order of the folder: about `share` of each class, at most 500 in all.

    None of them has a copy among the others. A class of which a share is less than half an image gives none.
    """
    of_class: dict[str, list[str]] = defaultdict(list)
    for image in unique_images(survey.scan.images):
        if listable(image.name):
            of_class[survey.layout.class_of(image.name)].append(image.name)

    counts = survey.class_counts()
    share = min(share, MAX_HELD_OUT / sum(counts.values()))
    chosen: set[str] = set()
    for name, candidates in of_class.items():
        count = min(round(share * counts[name]), len(candidates), counts[name] - 1)
        chosen.update(sorted(candidates, key=_rank)[:count])
    return [name for name in survey.layout.images if name in chosen]


def _rank(name: str) -> str:
    """The place of an image in a random order that depends on its name alone."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()
