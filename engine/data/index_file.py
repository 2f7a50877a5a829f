"""Index files: where the images of a large set are, as columns that are mapped into memory.

A mapped file is read where it is looked up, and is in memory once for all processes of a machine: loader processes
hold nothing of it. Format 1: 8 bytes that name the format, the length of the header as uint64, the SHA-256 of the
header, the header as JSON, and the columns, each at a multiple of 64 bytes. All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.arithmetic import ceil_div
from engine.atomic_file import atomic_file
from engine.json_text import to_json
from engine.messages import UserError, logger

MAGIC = b"VTINDEX1"
PREFIX = struct.Struct("<8sQ32s")  # magic, bytes of the header, SHA-256 of the header
ALIGNMENT = 64
MAX_HEADER_BYTES = 2**30
COPIED_BYTES = 2**24  # of a column at a time


class IndexDamaged(UserError):
    """An index file that cannot be what was written."""


def index_path(name: str, *made_of: object) -> Path:
    """The place of the index of something in the cache folder, $XDG_CACHE_HOME or ~/.cache.

    `made_of` is all that makes it another index.
    """
    digest = hashlib.sha256(repr(made_of).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "visual-tokenizers" / f"{name}-{digest}.index"


def file_state(path: Path) -> tuple[str, int, int]:
    """What of a file the name of its index is made of: where it lies, its bytes, and when it was modified."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def is_there(path: Path) -> bool:
    """Whether there is an index file. Where the cache folder may not be read there is none, which is said."""
    try:
        return path.is_file()
    except OSError as error:
        logger.warning("no index is looked for in %s (%s)", path.parent, error.strerror)
        return False


@dataclass(frozen=True)
class Index:
    """The contents of an index file."""

    facts: Mapping[str, Any]  # plain values
    columns: Mapping[str, np.ndarray]  # one-dimensional; read-only and mapped where they were read

    def save(self, path: Path) -> None:
        """Writes the file as a whole or not at all; its folder is made."""
        starts = self._starts()
        columns = {
            name: {"dtype": column.dtype.newbyteorder("<").str, "count": len(column), "start": starts[name]}
            for name, column in self.columns.items()
        }
        header = to_json({"facts": self.facts, "columns": columns}).encode()
        prefix = PREFIX.pack(MAGIC, len(header), hashlib.sha256(header).digest())

        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            file.write(prefix + header)
            first = _aligned(file.tell())
            for name, column in self.columns.items():
                file.seek(first + starts[name])
                rows = max(1, COPIED_BYTES // column.itemsize)
                for start in range(0, len(column), rows):
                    file.write(np.ascontiguousarray(column[start : start + rows], columns[name]["dtype"]).tobytes())
            file.truncate(max(file.tell(), first))

    def _starts(self) -> dict[str, int]:
        """Where each column begins, counted from the first."""
        starts, start = {}, 0
        for name, column in self.columns.items():
            starts[name] = start
            start = _aligned(start + column.nbytes)
        return starts

    @classmethod
    def open(cls, path: Path) -> Index:
        """Maps a file. Raises OSError where it cannot be read, and IndexDamaged where it was not written so."""
        content = np.memmap(path, mode="r", dtype=np.uint8).view(np.ndarray) if path.stat().st_size else np.zeros(0)
        if len(content) < PREFIX.size:
            raise IndexDamaged(f"{path} is cut off")
        magic, num_bytes, digest = PREFIX.unpack(content[: PREFIX.size].tobytes())
        if magic != MAGIC or num_bytes > MAX_HEADER_BYTES:
            raise IndexDamaged(f"{path} is no index of this version")
        header = content[PREFIX.size : PREFIX.size + num_bytes].tobytes()
        if hashlib.sha256(header).digest() != digest:
            raise IndexDamaged(f"{path} has a damaged header")

        # The header is as it was written: what it says of the columns fits, but for their end.
        described = json.loads(header)
        first = _aligned(PREFIX.size + num_bytes)
        columns = {}
        for name, facts in described["columns"].items():
            dtype = np.dtype(facts["dtype"])
            start = first + facts["start"]
            stop = start + facts["count"] * dtype.itemsize
            if stop > len(content):
                raise IndexDamaged(f"{path} is cut off")
            columns[name] = content[start:stop].view(dtype)
        return cls(described["facts"], columns)


def _aligned(position: int) -> int:
    return ceil_div(position, ALIGNMENT) * ALIGNMENT


def cached_index(path: Path, build: Callable[[], Index]) -> Index:
    """The index in a file of the cache, mapped; built and written where it is missing or damaged.

    The name of the file must change when what it was made of does, so that it is never stale (`index_path`). Other
    ranks may do the same at the same time. Where the file cannot be written, the index is in memory only.
    """
    if is_there(path):
        try:
            return Index.open(path)
        except (OSError, IndexDamaged) as error:
            logger.warning("the cached index %s is damaged (%s); building it again", path, error)

    index = build()
    try:
        index.save(path)
    except OSError as error:
        logger.warning("the index cannot be cached for the next start (%s)", error)
        return index
    logger.info("wrote the index %s", path)
    return Index.open(path)
