"""Names of files as two arrays: no Python object per name.

A list of strings is copied page by page into every loader process that reads from it, because reading an object writes
its reference count. Arrays stay shared, and can be mapped from a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class NameTable(Sequence[str]):
    """Names by number.

    `content` uint8 (bytes,) holds all of them, encoded for the file system, one after the other; name i ends before
    byte `ends[i]`, int64 (N,).
    """

    def __init__(self, content: np.ndarray, ends: np.ndarray) -> None:
        self.content = content
        self.ends = ends

    @classmethod
    def of(cls, names: Iterable[str]) -> NameTable:
        """The table of some names."""
        content, lengths = bytearray(), []
        for name in names:
            encoded = os.fsencode(name)
            content += encoded
            lengths.append(len(encoded))
        return cls(np.frombuffer(bytes(content), dtype=np.uint8), np.cumsum(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def encoded(self, index: int) -> bytes:
        """Name `index`, from 0, as the file system has it."""
        start = int(self.ends[index - 1]) if index else 0
        return self.content[start : int(self.ends[index])].tobytes()

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return os.fsdecode(self.encoded(number))

    def all_encoded(self) -> Iterator[bytes]:
        """All names, as the file system has them."""
        start = 0
        for end in self.ends.tolist() if len(self) < 10**7 else map(int, self.ends):
            yield self.content[start:end].tobytes()
            start = end
