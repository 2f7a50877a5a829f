"""Classes by name: the one check that two sets of images, or a set and a network, mean the same by a label.

A label is the rank of a class name in its own set. Two sets therefore agree on their labels only if their names are
the same, and nobody compares labels, or numbers of classes, in another way than `labels_among` (and `count_problem`,
for a network that is not trained yet and has only a number):

    the same names in both            labels stay as they are
    some of the expected names        labels become those of the expected names, which the log says
    a name that is not expected       refused, with the first names that differ and both numbers of classes
    names that nobody knows           compared by their number, which the log says: old runs, tar files with numbers
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image

from engine.data.base import ImageSource, Survey, replaced_images
from engine.data.identity import Described
from engine.messages import UserError, logger
from engine.near_names import did_you_mean, near_names

UNLABELED = ("all",)  # the names of a set whose images have no labels
STAMP = "classes"  # key in the stamp of a network's weights
SHOWN_NAMES = 3  # of each kind in a message
IMAGENET_CLASSES = 1000
IMAGENET_FOLDER = re.compile(r"n\d{8}")  # name of a class folder


@dataclass(frozen=True)
class Classes:
    """The classes of a set of images, or of a network that was trained on one."""

    names: tuple[str, ...]  # by label
    owner: str  # whose they are, for messages
    are_named: bool = True  # False: the names are only numbers, or nobody knows them

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, source: ImageSource | Survey) -> Classes:
        """The classes of images."""
        return cls(tuple(map(str, source.class_names)), source.name, getattr(source, "classes_are_named", True))

    @classmethod
    def of_survey(cls, survey: Survey | None) -> Classes | None:
        """The classes that a look at images shows; None where they are not there, or only opening them would tell."""
        return None if survey is None or survey.class_names is None else cls.of(survey)

    @classmethod
    def unknown(cls, count: int, owner: str) -> Classes:
        """As many classes, whose names nobody knows."""
        return cls(tuple(map(str, range(count))), owner, are_named=False)

    @classmethod
    def from_stamp(cls, stamp: Mapping[str, Any], count: int, owner: str) -> Classes:
        """The classes of a network by the stamp of its weights; those of older runs are unknown."""
        stamped = stamp.get(STAMP)
        if stamped is None:
            return cls.unknown(count, owner)
        return cls(tuple(stamped["names"]), owner, stamped["are_named"])

    def stamp(self) -> dict[str, Any]:
        """What the weights of a network that is trained on these classes say of them."""
        return {STAMP: {"names": list(self.names), "are_named": self.are_named}}

    @property
    def are_labels(self) -> bool:
        """Whether images have labels at all."""
        return self.names != UNLABELED

    def word_of(self, label: int) -> str | None:
        """The name of a class for people: ImageNet's words for its synset, else that of its folder; None where nobody
        knows it.
        """
        is_imagenet = len(self) == IMAGENET_CLASSES and (
            not self.are_named or IMAGENET_FOLDER.fullmatch(self.names[label])
        )
        if is_imagenet:
            from torchvision.models._meta import _IMAGENET_CATEGORIES

            return _IMAGENET_CATEGORIES[label]
        return self.names[label] if self.are_named else None

    def shown_name(self, label: int) -> str:
        """`word_of`, or `class 3` where nobody knows the name."""
        return self.word_of(label) or f"class {label}"

    def label_of(self, name: str) -> int:
        """The label of a class, by the name of its folder or by its name for people (`word_of`).

        Raises UserError for a name that is not there.
        """
        if self.are_named and name in self.names:
            return self.names.index(name)

        words = [word for word in map(self.word_of, range(len(self))) if word is not None]
        if not words:
            raise UserError(f"{self.owner} does not know the names of its classes; give their numbers")
        if name not in words:
            near = did_you_mean(map(repr, near_names(name, words)))
            raise UserError(f"{self.owner} has no class {name!r}; it has {len(self)}: {_listed(words, 12)}{near}")
        return words.index(name)


def labels_among(classes: Classes, expected: Classes) -> np.ndarray:
    """The label that each class of `classes` has in `expected`, int64 (len(classes),).

    Raises UserError for classes that are not among those expected.
    """
    if not (classes.are_named and expected.are_named):
        _compare_numbers(classes, expected)
        return np.arange(len(classes))

    # Sets are built once: a full ImageNet has 21,841 names, and every process compares them.
    label_of = {name: label for label, name in enumerate(expected.names)}
    strangers = [name for name in classes.names if name not in label_of]
    if strangers:
        raise UserError(_difference(classes, expected, strangers))
    if len(classes) < len(expected):
        present = set(classes.names)
        missing = [name for name in expected.names if name not in present]
        logger.info(
            "%s has %d of the %d classes of %s (without %s); its labels are taken by name",
            classes.owner, len(classes), len(expected), expected.owner, _listed(missing),
        )  # fmt: skip
    return np.array([label_of[name] for name in classes.names], dtype=np.int64)


def count_problem(classes: Classes, count: int, key: str) -> str | None:
    """What is wrong where a network for `count` classes, as the config key says, is to be trained on these; or None.

    A network that is not trained yet has a number of classes and no names.
    """
    return None if len(classes) == count else f"{key}={count}, but {classes.owner} has {len(classes)} classes"


def _compare_numbers(classes: Classes, expected: Classes) -> None:
    """Where names are not known on both sides: as many classes, or numbers that all are expected."""
    numbers_fit = not classes.are_named and len(classes) <= len(expected)
    if len(classes) != len(expected) and not numbers_fit:
        unnamed = expected if not expected.are_named else classes
        raise UserError(
            f"{classes.owner} has {len(classes)} classes, {expected.owner} has {len(expected)} "
            f"({unnamed.owner} does not say their names)"
        )
    if classes.are_named != expected.are_named:
        unnamed = classes if not classes.are_named else expected
        logger.warning(
            "%s does not say the names of its classes: compared with %s by their number only (%d)",
            unnamed.owner, (expected if unnamed is classes else classes).owner, len(classes),
        )  # fmt: skip


def _difference(classes: Classes, expected: Classes, strangers: Sequence[str]) -> str:
    """Says how two sets of classes differ."""
    number, (name, other) = next(
        (number, pair) for number, pair in enumerate(zip_longest(classes.names, expected.names)) if pair[0] != pair[1]
    )
    return (
        f"{classes.owner} and {expected.owner} have different classes: {len(classes)} against {len(expected)}; "
        f"class {number} is {_shown(name)} against {_shown(other)}; "
        f"unknown to the second: {_listed(strangers)}; give both the same class names"
    )


def _shown(name: str | None) -> str:
    return "none" if name is None else repr(name)


def _listed(names: Sequence[str], limit: int = SHOWN_NAMES) -> str:
    """The first names of a list."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(repr, names[:limit])) + more


# ------------------------------------------------------------------------------------------------ images
class Relabeled:
    """Images of another source, with the labels that their classes have among the expected ones."""

    def __init__(self, source: ImageSource, labels: np.ndarray, expected: Classes) -> None:
        self.source = source
        self.name = source.name
        self.labels = labels
        self.class_names = list(expected.names)
        self.classes_are_named = expected.are_named

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Image.Image:
        return self.source.image(index)

    def where(self, index: int) -> str:
        return self.source.where(index)

    def identity(self) -> str:
        return self.source.identity()

    def version(self) -> str:
        return self.source.version()

    @property
    def replaced(self) -> set[int]:
        return replaced_images(self.source)

    def contents(self) -> dict[str, str]:
        return self.source.contents() if isinstance(self.source, Described) else {}


def with_labels_of(source: ImageSource, expected: Classes) -> ImageSource:
    """The images of `source` with labels by the expected class names: the source itself where nothing changes.

    Raises UserError for classes that are not among those expected.
    """
    labels = labels_among(Classes.of(source), expected)
    if len(labels) == len(expected) and np.array_equal(labels, np.arange(len(labels))):
        return source
    return Relabeled(source, labels[source.labels], expected)
