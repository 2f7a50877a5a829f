"""Images in Parquet files: a column with the bytes of image files, and one with labels.

    train-00000-of-00294.parquet:  image (bytes, or a struct with `bytes`)   label (integers, or names of classes)

The columns are found by their names: the first of `image img jpg jpeg png webp` and of `label cls class`; without a
label column, all images are of one class. Names of integer labels are taken from the metadata that Hugging Face's
datasets writes. Labels and row groups are looked up once (4 bytes per image, cached for the next start).

To read an image, its row group must be read: the smallest piece that Parquet reads. Files for training in random order
should have row groups of few images (100 or fewer); a start warns of larger ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.data.base import PathKind
from engine.data.classes import UNLABELED
from engine.data.folders import identity_of, version_of
from engine.data.identity import digest_of, digest_of_columns
from engine.data.images import decode_image, printable
from engine.data.index_file import Index, cached_index, file_state, index_path
from engine.data.listing import is_folder, is_hidden
from engine.data.tar_members import MAX_CLASSES
from engine.installation import install_hint
from engine.messages import UserError, logger

INDEX_FORMAT = 1  # of the cached index
SUFFIX = ".parquet"
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "cls", "class")
NUM_OPEN_FILES = 16  # per process
LARGE_GROUP_BYTES = 32 * 2**20  # row groups above this are warned of


def pyarrow_parquet() -> Any:
    """Imports the package, which is an optional extra. Raises UserError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"data.name=parquet needs the package pyarrow: {install_hint('parquet')}") from error
    return pyarrow.parquet


def parquet_paths(root: str | Path, key: str) -> list[Path]:
    """The Parquet files of a folder, in alphabetical order, or a single one.

    Raises UserError if there are none; `key` is what named `root`.
    """
    if str(root).endswith(SUFFIX) and Path(root).is_file():
        return [Path(root)]
    there = Path(root).glob(f"*{SUFFIX}") if is_folder(root) else ()
    paths = sorted(path for path in there if not is_hidden(path.name))
    if not paths:
        raise UserError(f"{key}={printable(root)!r} names no Parquet files; accepted: a folder of them, or one file")
    return paths


# ------------------------------------------------------------------------------------------------ the columns
def _first_column(schema: Any, names: tuple[str, ...]) -> str | None:
    """The first of some names that a schema has."""
    return next((name for name in names if name in schema.names), None)


def _image_column(schema: Any, path: Path) -> str:
    """The column of the bytes of images, dotted where it lies in a struct. Raises UserError if there is none."""
    import pyarrow.types as types

    def holds_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    name = _first_column(schema, IMAGE_COLUMNS)
    if name is not None:
        kind = schema.field(name).type
        if holds_bytes(kind):
            return name
        if types.is_struct(kind) and any(child.name == "bytes" and holds_bytes(child.type) for child in kind):
            return f"{name}.bytes"
    raise UserError(
        f"{path} has no column of images; accepted: bytes, or a struct with `bytes`, with one of the names "
        f"{' '.join(IMAGE_COLUMNS)}; it has {', '.join(f'{field.name} ({field.type})' for field in schema)}"
    )


def _class_names_of_metadata(schema: Any, label_column: str) -> list[str]:
    """The names of integer labels that Hugging Face's datasets writes; none where there are no such."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


# ------------------------------------------------------------------------------------------------ the index
def _cache_path(paths: list[Path]) -> Path:
    """The file of the cached index; its name changes when a Parquet file does."""
    return index_path("parquet", INDEX_FORMAT, [file_state(path) for path in paths])


def _build_index(paths: list[Path]) -> Index:
    """Reads labels and sizes of row groups. Raises UserError for files that are torn, or differ in their columns."""
    parquet = pyarrow_parquet()
    columns: tuple[str, str | None] | None = None
    class_names: list[str] = []
    labels: list[Any] = []  # per file: integers, or names
    groups: list[tuple[int, int, int, int]] = []  # file, number in it, images, bytes
    for number, path in enumerate(tqdm(paths, desc="looking up images", unit="file", disable=None)):
        try:
            file = parquet.ParquetFile(path)
            schema = file.schema_arrow
            names = (_image_column(schema, path), _first_column(schema, LABEL_COLUMNS))
            if columns is not None and names != columns:
                raise UserError(f"{path} has the columns {names}, {paths[0]} has {columns}; give all the same ones")
            columns = names
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                groups.append((number, group, metadata.num_rows, metadata.total_byte_size))
            if columns[1] is not None:
                class_names = class_names or _class_names_of_metadata(schema, columns[1])
                labels.append(_labels_of(file, columns[1], path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a readable Parquet file ({error}); fetch it again") from error

    return _index_of(columns, groups, labels, class_names)


def _labels_of(file: Any, column: str, path: Path) -> np.ndarray:
    """The labels of a file: int64 (N,), or str (N,). Raises UserError for missing ones, and for other types."""
    values = file.read(columns=[column]).column(column).combine_chunks()
    if values.null_count:
        raise UserError(f"{path}: {values.null_count} images have no {column}; give all images one, or drop the column")
    labels = values.to_numpy(zero_copy_only=False)
    if labels.dtype.kind == "O":
        labels = np.array(labels.tolist(), dtype=None if len(labels) else str)
    if labels.dtype.kind not in "iuU":
        raise UserError(f"{path}: the column {column} holds {values.type}; accepted: integers, or names of classes")
    if labels.dtype.kind != "U" and len(labels) and not 0 <= labels.min() <= labels.max() < MAX_CLASSES:
        low, high = labels.min(), labels.max()
        raise UserError(f"{path}: the column {column} goes from {low} to {high}; accepted: 0 to {MAX_CLASSES - 1}")
    return labels


def _index_of(
    columns: tuple[str, str | None], groups: list[tuple[int, int, int, int]], labels: list[Any], class_names: list[str]
) -> Index:
    """Numbers the classes."""
    files, numbers, counts, sizes = np.array(groups, dtype=np.int64).reshape(-1, 4).T

    # The classes: one for all, those that labels name, or numbers.
    are_named = True
    if columns[1] is None:
        class_names, values = list(UNLABELED), np.zeros(int(counts.sum()), dtype=np.int32)
    else:
        values = np.concatenate(labels) if labels else np.zeros(0, dtype=np.int64)
        if values.dtype.kind == "U":
            names, values = np.unique(values, return_inverse=True)
            class_names = names.tolist()
        elif len(values) and len(class_names) <= int(values.max()):
            class_names, are_named = [str(i) for i in range(int(values.max()) + 1)], False

    # What the index holds.
    facts = {
        "image_column": columns[0],
        "class_names": class_names,
        "classes_are_named": are_named,
        "largest_group": int(sizes.max(initial=0)),
        "digest": digest_of_columns(values),
    }
    group_columns = {"group_files": files, "group_numbers": numbers, "group_ends": np.cumsum(counts)}
    return Index(facts, {"labels": values.astype(np.int32), **group_columns})


# ------------------------------------------------------------------------------------------------ the source
class ParquetSource(PathKind):
    """The images of Parquet files, by number: file by file, row by row.

    Raises UserError for a file that is missing, torn or without images, or has no column of images.
    """

    decodes_files = True
    mixed_held_out = True

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None:
        self.name = printable(root)
        self.paths = parquet_paths(root, key)

        # The images and their classes.
        index = cached_index(_cache_path(self.paths), lambda: _build_index(self.paths))
        self.labels = index.columns["labels"]
        if not len(self.labels):
            raise UserError(f"{key}={self.name!r}: no images in {len(self.paths)} Parquet files")
        self.class_names: list[str] = index.facts["class_names"]
        self.classes_are_named: bool = index.facts["classes_are_named"]

        # Where they are.
        self._group_files, self._group_numbers, self._group_ends = (
            index.columns[name] for name in ("group_files", "group_numbers", "group_ends")
        )
        self._column: str = index.facts["image_column"]
        self._digest: str = index.facts["digest"]
        self._files: dict[tuple[int, int], Any] = {}  # (process, number) -> an open file, the least used first

        # What makes reading slow.
        if index.facts["largest_group"] > LARGE_GROUP_BYTES:
            logger.warning(
                "%s: a row group has up to %.0f MB, all of which is read for each image; write row groups of 100 "
                "images or fewer, or use folders or tar files",
                self.name, index.facts["largest_group"] / 1e6,
            )  # fmt: skip

    @classmethod
    def require(cls, root: str | Path, key: str) -> None:
        parquet_paths(root, key)

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """A Parquet file, or a folder that holds some."""
        is_file = str(path).endswith(SUFFIX) and Path(path).is_file()
        return is_file or (is_folder(path) and any(Path(path).glob(f"*{SUFFIX}")))

    @classmethod
    def build_index(cls, root: str | Path, key: str, skip_broken: bool = False) -> Path:
        """Reads the labels, where their index is not there yet; returns its file."""
        return _cache_path(cls(root, key, skip_broken).paths)

    def __len__(self) -> int:
        return len(self.labels)

    def _row(self, index: int) -> tuple[int, int, int]:
        """The number of the file of an image, the row group in it, and the row in that."""
        group = int(np.searchsorted(self._group_ends, index, side="right"))
        start = int(self._group_ends[group - 1]) if group else 0
        return int(self._group_files[group]), int(self._group_numbers[group]), index - start

    def _open(self, number: int) -> Any:
        """A file, opened by this process: a fork must not share the position of its parent."""
        key = (os.getpid(), number)
        file = self._files.pop(key, None) or pyarrow_parquet().ParquetFile(self.paths[number])
        self._files[key] = file
        while len(self._files) > NUM_OPEN_FILES:
            self._files.pop(next(iter(self._files)))
        return file

    def _bytes(self, index: int) -> bytes:
        number, group, row = self._row(index)
        table = self._open(number).read_row_group(group, columns=[self._column], use_threads=False)
        value = table.column(0).slice(row, 1).to_pylist()[0]
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None:
            raise ValueError("the row holds no bytes")
        return content

    def image(self, index: int) -> Image.Image:
        return decode_image(lambda: self._bytes(index), self.where(index), self.decoding)

    def where(self, index: int) -> str:
        number, group, row = self._row(index)
        return f"{printable(self.paths[number])} (row {row} of row group {group})"

    def _listing(self) -> Iterator[bytes]:
        for path in self.paths:
            yield os.fsencode(path.name) + f" {path.stat().st_size}\n".encode()

    def identity(self) -> str:
        """SHA-256 over names and sizes of the files, and the content of evenly spread images."""
        return identity_of(self._listing(), len(self), self._bytes) + self.decoding.suffix()

    def contents(self) -> dict[str, str]:
        """Digests of the names and sizes of the Parquet files, and of the labels."""
        return {"names and sizes of Parquet files": digest_of(self._listing()), "labels": self._digest}

    def version(self) -> str:
        return version_of(self.paths) + self.decoding.suffix()
