"""Tensors of a checkpoint file: descriptions that cost nothing, and the tensors themselves, memory-mapped.

Every size that a file claims is compared with what the file holds before memory is taken, and its bytes with their
checksum where it has one. A mapped tensor changes with its file: what keeps it copies it, as `load_strict` does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from engine.checkpoint.manifest import CheckpointError

MAX_DIMENSIONS = 32
MAX_NUMBER = 2**63
MAX_EXPANDED = 2**20  # elements of a tensor that repeats its storage, such as an expanded one
MAX_GROWTH = 8  # bytes of all chosen tensors in float32, per byte of the file (float8 grows by 4; shared ones repeat)
ALIGNMENT = 8  # bytes; tensors that begin elsewhere are copied
BLOCK = 2**24  # bytes that are read at a time for a checksum


@dataclass(frozen=True)
class Storage:
    """A block of numbers that a file claims to hold."""

    key: str
    dtype: torch.dtype  # of the storage; uint8 where it is untyped
    num_bytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage. Offset and strides count elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def problem(self) -> str | None:
        """Why this is no view of its storage; None if it is one."""
        if len(self.shape) != len(self.stride) or len(self.shape) > MAX_DIMENSIONS:
            return f"{len(self.shape)} sizes and {len(self.stride)} strides"
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(number) is not int or not 0 <= number < MAX_NUMBER for number in numbers):
            return "impossible sizes"

        # The last element that it reaches must lie inside, and repeated elements must be few.
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        available = self.storage.num_bytes // self.dtype.itemsize
        if self.num_elements > 0 and last >= available:
            return f"shape {self.shape}, beyond the {available} numbers of its storage"
        if self.num_elements > max(available, MAX_EXPANDED):
            return f"shape {self.shape}, of only {available} numbers"
        return None


@dataclass(frozen=True)
class Place:
    """Where the bytes of a storage lie in a file."""

    first: int
    num_bytes: int
    crc: int | None = None  # CRC-32 of the bytes; None where the file has none


class TensorFile:
    """The bytes of a checkpoint file. `places` are those of each storage, by its key."""

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        self.path = path
        self.places = places
        self.size = path.stat().st_size

    def check(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Raises CheckpointError for a tensor whose storage is absent or too small, or if all of them grow too much."""
        for name, tensor in tensors.items():
            place = self.places.get(tensor.storage.key)
            is_there = place is not None and place.first + place.num_bytes <= self.size
            if not is_there or place.num_bytes < tensor.storage.num_bytes:
                raise CheckpointError(
                    f"{self.path} is truncated or not a PyTorch checkpoint: the numbers of {name} are not in it"
                )

        total = sum(4 * tensor.num_elements for tensor in tensors.values())
        if total > MAX_GROWTH * self.size + 2**24:
            raise CheckpointError(
                f"{self.path} has {self.size:,} bytes and claims tensors of {total:,}: it is not read"
            )

    def read_header(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The tensors on the meta device: names, shapes and types. Raises CheckpointError as `check` does."""
        self.check(tensors)
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}

    def read(self, tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The tensors themselves, memory-mapped. Raises CheckpointError as `check` does, and for a wrong checksum."""
        self.check(tensors)
        if not tensors:
            return {}
        self._check_sums(tensors)
        file_bytes = torch.UntypedStorage.from_file(str(self.path), False, self.size)
        return {name: self._tensor(tensor, file_bytes) for name, tensor in tensors.items()}

    def _check_sums(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Raises CheckpointError where the bytes of a tensor are not those that were written."""
        names = {tensor.storage.key: name for name, tensor in tensors.items()}
        with self.path.open("rb") as file:
            for key, name in names.items():
                place = self.places[key]
                if place.crc is not None and crc_of(file, place) != place.crc:
                    raise CheckpointError(
                        f"{self.path} is damaged: the checksum of {name} is wrong; copy or download the file again"
                    )

    def _tensor(self, tensor: StoredTensor, file_bytes: torch.UntypedStorage) -> Tensor:
        first = self.places[tensor.storage.key].first
        numbers = file_bytes[first : first + tensor.storage.num_bytes]
        if first % ALIGNMENT:
            numbers = numbers.clone()
        return torch.empty(0, dtype=tensor.dtype).set_(numbers, tensor.offset, tensor.shape, tensor.stride)


def crc_of(file: BinaryIO, place: Place) -> int:
    """CRC-32 of a part of a file, read in blocks."""
    file.seek(place.first)
    checksum = 0
    for start in range(0, place.num_bytes, BLOCK):
        checksum = zlib.crc32(file.read(min(BLOCK, place.num_bytes - start)), checksum)
    return checksum
