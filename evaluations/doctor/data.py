"""What can be wrong with the images of a run: a scan of the training images, reading each once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf

from autoregressive.codes import CodeStore
from autoregressive.training.config import images_of
from engine.data.images import ImageError
from engine.data.sources import ImageSource, has_split, open_source
from engine.messages import UserError


class Finding(NamedTuple):
    """A symptom that is reported."""

    name: str
    evidence: str
    remedy: str


@dataclass
class Scan:
    """What the images of a source look like; they are named as in messages."""

    digests: dict[str, str] = field(default_factory=dict)  # SHA-256 of size and pixels
    short_sides: dict[str, int] = field(default_factory=dict)  # pixels
    broken: list[str] = field(default_factory=list)


def scan_images(source: ImageSource, limit: int) -> Scan:
    """Reads `limit` images, evenly chosen over the set."""
    scan = Scan()
    for index in np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int):
        name = source.where(int(index))
        try:
            image = source.image(int(index))
        except ImageError:
            scan.broken.append(name)
            continue
        content = repr(image.size).encode() + image.tobytes()
        scan.digests[name] = hashlib.sha256(content).hexdigest()
        scan.short_sides[name] = min(image.size)
    return scan


# ------------------------------------------------------------------------------------------------ symptoms
def imbalance(labels: np.ndarray, names: list[str]) -> Iterator[Finding]:
    """A class with 10 x the images of another.

    The model then learns rare classes from the statistics of common ones.
    """
    counts = np.bincount(labels, minlength=len(names))
    largest = int(counts.argmax())
    smallest = int(counts.argmin())
    if len(names) >= 2 and counts[largest] >= 10 * counts[smallest]:
        evidence = f"{counts[largest]} images of {names[largest]}, {counts[smallest]} of {names[smallest]}"
        yield Finding("class imbalance", evidence, "add images of the rare classes, or leave them out")


def broken_images(scan: Scan) -> Iterator[Finding]:
    """Any unreadable image."""
    if scan.broken:
        evidence = f"{len(scan.broken)} unreadable images, such as {scan.broken[0]}"
        yield Finding("broken images", evidence, "remove them, or train with data.skip_broken=true")


def tiny_images(scan: Scan, image_size: int) -> Iterator[Finding]:
    """More than 5 % of images below the training size: a few are enlarged without harm."""
    tiny = [name for name, side in scan.short_sides.items() if side < image_size]
    if len(tiny) > 0.05 * len(scan.short_sides):
        count = f"{len(tiny)} of {len(scan.short_sides)} images"
        evidence = f"{count} are smaller than data.image_size={image_size}, such as {tiny[0]}"
        remedy = "remove them, or lower data.image_size: enlarged images have no detail"
        yield Finding("tiny images", evidence, remedy)


def duplicate_images(scan: Scan) -> Iterator[Finding]:
    """More than 1 % of copies; ImageNet has fewer."""
    copies_of = Counter(scan.digests.values())
    num_copies = len(scan.digests) - len(copies_of)
    if num_copies > 0.01 * len(scan.digests):
        most_common = copies_of.most_common(1)[0][0]
        example = next(name for name, digest in scan.digests.items() if digest == most_common)
        evidence = f"{num_copies} of {len(scan.digests)} images are copies, such as {example}"
        yield Finding("duplicate images", evidence, "remove copies: they are memorized first")


def held_out_images_in_training(training: Scan, held_out: Scan) -> Iterator[Finding]:
    """Any image on both sides."""
    training_digests = set(training.digests.values())
    shared = [name for name, digest in held_out.digests.items() if digest in training_digests]
    if shared:
        evidence = f"{len(shared)} held-out images are also training images, such as {shared[0]}"
        remedy = "remove them from one side: until then held-out numbers are too good"
        yield Finding("held-out images in training", evidence, remedy)


# ------------------------------------------------------------------------------------------------ the scan
def data_findings(config: DictConfig, limit: int) -> list[Finding]:
    """Looks for broken, tiny, duplicate and held-out images, and for unequal classes.

    At most `limit` training images are read, evenly chosen.
    """
    # Codes have labels and no images. Unreadable images must not stop the scan.
    data = images_of(OmegaConf.merge(config.data, {"skip_broken": True}))
    if data is None:
        store = CodeStore(config.data.codes, "train")
        return list(imbalance(np.asarray(store.labels), store.manifest.class_names))
    try:
        source = open_source(data, "train")
    except UserError as error:
        return [Finding("missing data", str(error), "mount the data, or set data.root")]

    scan = scan_images(source, limit)
    findings = [
        *imbalance(source.labels, list(source.class_names)),
        *broken_images(scan),
        *tiny_images(scan, data.image_size),
        *duplicate_images(scan),
    ]
    if has_split(data, "val"):
        findings += held_out_images_in_training(scan, scan_images(open_source(data, "val"), limit))
    return findings
