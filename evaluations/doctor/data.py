"""What can be wrong with the images of a run: a scan of the training images, reading each once."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from autoregressive.codes import CodeStore
from engine.config import merge_config
from engine.data.config import DataConfig
from engine.data.images import ImageError
from engine.data.sources import has_split, open_source
from engine.messages import UserError

Finding = tuple[str, str, str]  # name, evidence, remedy


def _scan(source: Any, limit: int) -> tuple[dict[str, str], dict[str, int], list[str]]:
    """{image: digest of its pixels}, {image: short side} and the broken ones, of `limit` images evenly over the set."""
    digests, sides, broken = {}, {}, []
    for index in np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int):
        where = source.where(int(index))
        try:
            image = source.image(int(index))
        except ImageError:
            broken.append(where)
            continue
        digests[where], sides[where] = (
            hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest(),
            min(image.size),
        )
    return digests, sides, broken


def imbalance(labels: np.ndarray, names: list[str]) -> list[Finding]:
    """A class with 10 x the images of another: rare classes are then learned by the common ones' statistics."""
    counts = np.bincount(labels, minlength=len(names))
    high, low = int(counts.argmax()), int(counts.argmin())
    if len(names) < 2 or counts[high] < 10 * counts[low]:
        return []
    text = f"{counts[high]} images of {names[high]}, {counts[low]} of {names[low]}"
    return [("class imbalance", text, "add images of the rare classes, or leave them out")]


def data_findings(config: Any, limit: int) -> list[Finding]:
    """Broken, tiny, duplicate and held-out images among `limit` training images, and unequal classes."""
    if "codes" in config.data:
        store = CodeStore(config.data.codes, "train")
        return imbalance(np.asarray(store.labels), store.manifest.class_names)
    data = merge_config(DataConfig, [("config.yaml", config.data), ("scan", OmegaConf.create({"skip_broken": True}))])
    try:
        source = open_source(data, "train")
    except UserError as error:
        return [("missing data", str(error), "mount the data, or set data.root")]
    digests, sides, broken = _scan(source, limit)
    found = imbalance(source.labels, list(source.class_names))
    if broken:
        text = f"{len(broken)} unreadable images, such as {broken[0]}"
        found.append(("broken images", text, "remove them, or train with data.skip_broken=true"))
    tiny = [name for name, side in sides.items() if side < data.image_size]
    if len(tiny) > 0.05 * len(sides):  # a few are enlarged without harm
        text = (
            f"{len(tiny)} of {len(sides)} images are smaller than data.image_size={data.image_size}, such as {tiny[0]}"
        )
        found.append(("tiny images", text, "remove them, or lower data.image_size: enlarged images have no detail"))
    groups = Counter(digests.values())
    copies = sum(groups.values()) - len(groups)
    if copies > 0.01 * len(digests):  # ImageNet has below 1 %
        top = groups.most_common(1)[0][0]
        text = (
            f"{copies} of {len(digests)} images are copies, such as {next(n for n, d in digests.items() if d == top)}"
        )
        found.append(("duplicate images", text, "remove copies: they are learned by heart first"))
    if has_split(data, "val"):
        shared = [name for name, d in _scan(open_source(data, "val"), limit)[0].items() if d in groups]
        if shared:
            text = f"{len(shared)} held-out images are also training images, such as {shared[0]}"
            found.append(("held-out images in training", text, "remove them from one side: held-out numbers lie"))
    return found
