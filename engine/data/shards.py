"""Images in tar files, as WebDataset lays them out: the parts of a sample share a name.

    shard-000000.tar:  0001.jpg  0001.cls  0002.jpg  0002.cls ...     .cls holds the label as text
    shard-000000.tar:  0001.jpg  0001.json 0002.jpg  0002.json ...    .json holds it under `cls` or `label`
    shard-000000.tar:  cat/0001.jpg  dog/0001.jpg ...                 classes are folders, where no file says a label

WebDataset itself reads a tar from its start and shuffles in a buffer, so the order of its samples depends on the number
of processes and a restart loses its place. Here the place of every image is looked up once (20 bytes per image, cached
for the next start in $XDG_CACHE_HOME; `python -m engine.index_images` does it ahead), and any image is read by its
number: the order is the same pure function of (seed, position) as for folders. Names of shards and samples follow the
package webdataset. Shards are local and not compressed; images are compressed already.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.counts import counted
from engine.data.base import PathKind, SourceConfig, Survey
from engine.data.classes import UNLABELED
from engine.data.folders import identity_of, version_of
from engine.data.identity import digest_of, digest_of_columns, int64_bytes
from engine.data.images import decode_image, printable
from engine.data.index_file import Index, cached_index, file_state, index_path, is_there
from engine.data.listing import is_folder
from engine.data.tar_members import JSON_SUFFIX, LABEL_SUFFIX, NO_LABEL, list_tar, read_member
from engine.installation import install_hint
from engine.messages import UserError, logger

INDEX_FORMAT = 4  # of the cached index
ROW = np.dtype([("shards", np.int32), ("starts", np.int64), ("sizes", np.uint32), ("labels", np.int32)])  # of an image
COLUMNS = ROW.names


def webdataset() -> Any:
    """Imports the package, which is an optional extra. Raises UserError if it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise UserError(f"data.name=shards needs the package webdataset: {install_hint('shards')}") from error
    return webdataset


def shard_paths(root: str, key: str) -> list[Path]:
    """The tar files of a folder, in alphabetical order, or those of a pattern.

    A pattern is such as `train-{000000..000123}.tar`. Raises UserError if there are none, or some of the pattern are
    missing; `key` is what named `root`.
    """
    paths = sorted(Path(root).glob("*.tar")) if is_folder(root) else []
    if not paths and root.endswith(".tar") and ":" not in root:
        paths = [Path(url) for url in webdataset().shardlists.expand_urls(root)]
    if not paths:
        raise UserError(f"{key}={root!r} names no tar files on this machine; accepted: a folder, a-{{0000..0123}}.tar")
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{key}={root!r}: {missing[0]} does not exist ({len(missing)} of {len(paths)} are missing)")
    return paths


# ------------------------------------------------------------------------------------------------ the index
def cache_path(paths: list[Path], skip_broken: bool) -> Path:
    """The file of the cached index; its name changes when a shard does, so that none is ever stale."""
    return index_path("shards", INDEX_FORMAT, [file_state(path) for path in paths], skip_broken)


def open_index(paths: list[Path], skip_broken: bool) -> Index:
    """Where the images of some shards are, and their classes."""
    return cached_index(cache_path(paths, skip_broken), lambda: _build_index(paths, skip_broken))


def _build_index(paths: list[Path], skip_broken: bool) -> Index:
    """Scans all shards. Raises UserError for an image of 4 GiB or more."""
    split_name = webdataset().tariterators.base_plus_ext
    rows = [np.zeros(0, dtype=ROW)]
    folders: list[np.ndarray] = []  # per shard: the number of each image's folder
    number_of: dict[str, int] = {}  # folder -> its number
    num_hidden = num_links = 0
    odd_label = ""
    for shard, path in enumerate(tqdm(paths, desc="looking up images", unit="shard", disable=None)):
        listing = list_tar(path, split_name, skip_broken)
        huge = next((sample.name for sample in listing.samples if sample.image.size >= 2**32), None)
        if huge is not None:
            raise UserError(f"{path}: sample {huge} has 4 GiB or more; that is no image")
        rows.append(np.array([(shard, *sample.image, sample.label) for sample in listing.samples], dtype=ROW))
        numbers = [number_of.setdefault(sample.folder, len(number_of)) for sample in listing.samples]
        folders.append(np.array(numbers, dtype=np.int32))
        num_hidden += listing.num_hidden
        num_links += listing.num_links
        odd_label = odd_label or listing.odd_label

    # Where no file says a label, folders may be classes.
    columns = {name: np.concatenate([part[name] for part in rows]) for name in COLUMNS}
    class_names: list[str] = []
    if len(columns["labels"]) and columns["labels"].max() == NO_LABEL:
        if odd_label:
            logger.warning("labels in .json files are not numbers, and were not read: %s", odd_label)
        class_names = _classes_of_folders(list(number_of), folders)
        if class_names:
            label_of = {name: label for label, name in enumerate(class_names)}
            labels = np.array([label_of[PurePosixPath(folder).name] for folder in number_of], dtype=np.int32)
            columns["labels"] = labels[np.concatenate(folders)]
    digest = digest_of_columns(columns["shards"], columns["sizes"], np.maximum(columns["labels"], 0))
    facts = {"class_names": class_names, "num_hidden": num_hidden, "num_links": num_links, "digest": digest}
    return Index(facts, columns)


def _classes_of_folders(names: list[str], in_shards: list[np.ndarray]) -> list[str]:
    """The classes that the folders of images stand for, in alphabetical order; none where they are no classes.

    They are classes, as in a folder in ImageNet layout, if some tar file holds several, and all images lie equally
    deep. A tar file with a single folder has that for its own order.
    """
    depths = {len(PurePosixPath(name).parts) for name in names}
    is_sorted_by_class = any(len(np.unique(numbers)) > 1 for numbers in in_shards)
    return sorted({PurePosixPath(name).name for name in names}) if len(depths) == 1 and is_sorted_by_class else []


class ShardSource(PathKind):
    """The images of tar files, by number.

    Raises UserError for a shard that is missing, torn or without images, and where only some images have a label.
    """

    decodes_files = True
    mixed_held_out = True
    classes_are_named: bool = True  # False: labels are numbers

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None:
        self.name = printable(root)
        self.paths = shard_paths(str(root), key)
        index = open_index(self.paths, skip_broken)
        self.shards, self.starts, self.sizes, labels = (index.columns[name] for name in COLUMNS)
        self._digest = index.facts["digest"]
        self.num_hidden = index.facts["num_hidden"]

        # What was left out, and what was followed.
        if self.num_hidden:
            logger.info("%s: left out %d hidden names", self.name, self.num_hidden)
        if index.facts["num_links"]:
            logger.info("%s: followed %d hard or symbolic links", self.name, index.facts["num_links"])

        # All images have a label, or none.
        if not len(labels):
            raise UserError(f"{key}={self.name!r}: no images in {len(self.paths)} shards")
        if labels.min() < 0 <= labels.max():
            unlabeled = self.where(int(labels.argmin()))
            raise UserError(f"{unlabeled} has no label, others have one; give all images one ({LABEL_SUFFIX}), or none")
        self._name_classes(labels, index.facts["class_names"])

    @classmethod
    def require(cls, root: str | Path, key: str) -> None:
        shard_paths(str(root), key)

    @classmethod
    def build_index(cls, root: str | Path, key: str, skip_broken: bool = False) -> Path:
        """Scans the tar files, where their index is not there yet; returns its file."""
        paths = shard_paths(str(root), key)
        open_index(paths, skip_broken)
        return cache_path(paths, skip_broken)

    def _name_classes(self, labels: np.ndarray, folder_names: list[str]) -> None:
        """Sets labels and class names, and says where they come from if that may surprise."""
        # Without labels all are 0: one number that stands for all of them.
        self.labels = labels if labels.max() != NO_LABEL else np.broadcast_to(np.zeros(1, np.int32), labels.shape)

        # Names: folders, one for images without a label, or numbers.
        if folder_names:
            self.class_names = folder_names
            logger.info("%s: the classes are the %d folders in the tar files", self.name, len(folder_names))
        elif labels.max() == NO_LABEL:
            self.class_names = list(UNLABELED)
            logger.warning(
                "%s: no image has a label (%s, %s, or a folder per class): all are of one class",
                self.name, LABEL_SUFFIX, JSON_SUFFIX,
            )  # fmt: skip
        else:
            self.class_names = [str(i) for i in range(labels.max() + 1)]
            self.classes_are_named = False

        # Numbers that count from 1.
        if labels.min() > 0:
            logger.warning(
                "%s: labels begin at %d, so the classes before it have no image; labels count from 0",
                self.name, labels.min(),
            )  # fmt: skip

    @classmethod
    def survey(cls, config: SourceConfig, split: str) -> Survey:
        """Looks whether all tar files are there; opens them only where their index is cached already."""
        root, key = cls.root(config, split), cls.root_key(split)
        paths = shard_paths(root, key)
        webdataset()
        empty = [path for path in paths if path.stat().st_size == 0]
        if empty:
            raise UserError(f"{key}={root!r}: {empty[0]} is empty; fetch it again")
        if is_there(cache_path(paths, config.skip_broken)):
            return super().survey(config, split)
        return Survey(f"{printable(root)}, {counted(len(paths), 'tar file')}")

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """Tar files: a pattern that ends in .tar, or a folder that holds some."""
        return str(path).endswith(".tar") or (is_folder(path) and any(Path(path).glob("*.tar")))

    def __len__(self) -> int:
        return len(self.labels)

    def _bytes(self, index: int) -> bytes:
        return read_member(self.paths[self.shards[index]], self.starts[index], self.sizes[index])

    def image(self, index: int) -> Image.Image:
        return decode_image(lambda: self._bytes(index), self.where(index), self.decoding)

    def where(self, index: int) -> str:
        return f"{printable(self.paths[self.shards[index]])} (image at byte {self.starts[index]})"

    def identity(self) -> str:
        """SHA-256 over sizes and labels of all images, and the content of evenly spread ones."""
        return identity_of(int64_bytes(self.sizes, self.labels), len(self), self._bytes) + self.decoding.suffix()

    def contents(self) -> dict[str, str]:
        """Digests of the names of the tar files, and of the sizes and labels of the images in them."""
        return {
            "names of tar files": digest_of(os.fsencode(path.name) for path in self.paths),
            "sizes of images": self._digest,
        }

    def version(self) -> str:
        return version_of(self.paths) + self.decoding.suffix()
