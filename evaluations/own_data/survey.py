"""What the images of a folder have in common, as plain values for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data.header import UPRIGHT
from engine.data.images import printable
from engine.data.layout import FolderLayout
from evaluations.own_data.duplicates import same_files, same_pictures
from evaluations.own_data.scan import ORIENTATION, Scan

TALL_OR_WIDE = 2.0  # sides in this ratio: a square crop then loses half of the image


@dataclass(frozen=True)
class Survey:
    """A folder, how it is read, and its images."""

    layout: FolderLayout
    scan: Scan

    @property
    def sizes(self) -> np.ndarray:
        """Width and height of the readable images, as they are to be seen: int64 (N, 2)."""
        sizes = [image.header.size(ORIENTATION) for image in self.scan.images]
        return np.array(sizes, dtype=np.int64).reshape(-1, 2)

    @property
    def short_sides(self) -> np.ndarray:
        """Of the readable images: int64 (N,)."""
        return self.sizes.min(axis=1)

    @property
    def images_per_second(self) -> float:
        """How many images one core decodes in a second."""
        seconds = sum(image.seconds for image in self.scan.images)
        return len(self.scan.images) / seconds if seconds else 0.0

    def class_counts(self) -> dict[str, int]:
        """Images by class, in the order of the labels; broken ones count."""
        return dict(Counter(map(self.layout.class_of, self.layout.images)))


def spread(values: np.ndarray) -> dict[str, float]:
    """The smallest, the middle and the largest of some values."""
    return {"min": _number(values.min()), "median": _number(np.median(values)), "max": _number(values.max())}


def _number(value: np.floating | np.integer) -> float:
    """A whole number where it is one, else two decimals."""
    return int(value) if float(value).is_integer() else round(float(value), 2)


def survey_values(survey: Survey) -> dict[str, Any]:
    """Everything that was found, under names for people."""
    layout, scan = survey.layout, survey.scan
    listing = layout.listing
    orientations = [image.header.orientation for image in scan.images]
    return {
        # The folder.
        "pictures": printable(layout.folder),
        "layout": layout.layout,
        "reason": layout.reason,
        "images": len(layout.images),
        "images_read": scan.num_read,
        "classes": survey.class_counts(),
        # The readable images.
        "sizes": size_values(survey) if scan.images else {},
        "modes": _counts(image.header.mode for image in scan.images),
        "formats": _counts(image.header.format for image in scan.images),
        "exif_orientations": _counts(value for value in orientations if value != UPRIGHT),
        "animations": [printable(image.name) for image in scan.images if image.header.frames > 1],
        # What is wrong, and what is not read at all.
        "broken": {printable(image.name): image.reason for image in scan.broken},
        "same_files": [[printable(name) for name in group] for group in same_files(scan.images)],
        "same_pictures": [[printable(name) for name in group] for group in same_pictures(scan.images)],
        "not_seen": {
            "images_of_another_depth": [printable(name) for name in layout.left_out],
            "other_files": len(listing.others),
            "hidden_names": listing.num_hidden,
            "dead_links": [printable(name) for name in listing.broken],
        },
        # How it was read, and how fast.
        "links_followed": listing.num_links,
        "megabytes": round(sum(image.num_bytes for image in scan.images) / 1e6, 2),
        "images_per_second_and_core": round(survey.images_per_second, 1),
    }


def size_values(survey: Survey) -> dict[str, Any]:
    """Sizes of the readable images."""
    widths, heights = survey.sizes.T
    aspects = np.maximum(widths, heights) / np.minimum(widths, heights)
    return {
        "width": spread(widths),
        "height": spread(heights),
        "short_side": spread(survey.short_sides),
        "long_side_over_short_side": spread(aspects),
        "very_tall_or_wide": int((aspects >= TALL_OR_WIDE).sum()),
    }


def _counts(values: Iterable[Any]) -> dict[str, int]:
    """How often each value occurs, the most frequent one first."""
    return {str(value): count for value, count in Counter(values).most_common()}
