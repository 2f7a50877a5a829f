"""Sets of images that metrics are computed over: an npz file, a folder, or a data set, read batch by batch.

Each has `len()`, `image_size` (None where images differ), `facts` (what they are), and `batches(size, world)`, which
deals whole batches to the ranks: (image numbers (b,), uint8 (b,3,H,W)).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.checkpoint.manifest import file_sha256
from engine.data.folders import LooseSource
from engine.data.images import image_tensor
from engine.data.samples import center_batch
from engine.data.sources import ImageSource, read_source
from engine.messages import UserError
from engine.world import World
from evaluations.results import write_arrays

Batches = Iterator[tuple[Tensor, Tensor]]


class ImageSequence(Protocol):
    """See the module docstring."""

    image_size: int | None
    facts: dict[str, Any]
    version: str  # changes when the files do, on this machine: for caches

    def __len__(self) -> int: ...
    def batches(self, size: int, world: World) -> Batches: ...


def rank_batches(count: int, size: int, world: World) -> list[Tensor]:
    """The batches of this rank: equal for any number of ranks, so that rounding is too."""
    return list(torch.arange(count).split(size)[world.rank :: world.size])


def with_bar(batches: Iterator[tuple], count: int, title: str, world: World) -> Iterator[tuple]:
    """The batches of this rank, (image numbers, ...), with a bar that counts the images of all ranks."""
    with tqdm(total=count, desc=title, unit="image", disable=None if world.is_main else True) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch[0]) * world.size)


class SourceImages:
    """Centre crops of a data set, or with `image_size=None` its images as they are, which must have one size."""

    def __init__(self, source: ImageSource, split: str, image_size: int | None, skip_broken: bool = False) -> None:
        self.source, self.image_size, self.skip_broken = source, image_size, skip_broken
        crop = "centre" if image_size is not None else "none"
        self.facts = {"data": source.name, "split": split, "crop": crop, "content": source.identity()}
        self.facts["skip_broken"] = skip_broken
        self.version = source.version()
        if image_size is None:
            self.image_size = read_source(source, 0, skip_broken)[0].width

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, size: int, world: World) -> Batches:
        for ids in rank_batches(len(self), size, world):
            if self.facts["crop"] == "centre":
                yield ids, center_batch(self.source, self.image_size, ids.numpy(), self.skip_broken)
            else:
                yield ids, torch.stack([self._whole(int(i)) for i in ids])

    def _whole(self, index: int) -> Tensor:
        image = read_source(self.source, index, self.skip_broken)[0]
        if image.size != (self.image_size, self.image_size):
            raise UserError(
                f"{self.source.where(index)} has {image.width}x{image.height} pixels, the first image "
                f"{self.image_size}x{self.image_size}; a set of samples has one square size"
            )
        return image_tensor(image)


class NpzImages:
    """`arr_0` of an npz file, uint8 (n,H,W,3), read from the archive row by row: the file may be larger than memory."""

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.path = path
        with _rows(path) as (_, shape):
            self.shape = shape
        self.image_size = shape[1]
        content = sha256 or file_sha256(path)  # of a file of 10 GB it takes half a minute
        self.facts = {"data": str(path), "split": "file", "crop": "none", "content": content}
        self.version = content

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int, world: World) -> Batches:
        _, height, width, channels = self.shape
        row = height * width * channels
        with _rows(self.path) as (file, _):
            position = 0
            for ids in rank_batches(len(self), size, world):
                self._read(file, (int(ids[0]) - position) * row)
                content = np.frombuffer(self._read(file, len(ids) * row), np.uint8)
                position = int(ids[-1]) + 1
                yield ids, torch.from_numpy(content.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).copy())

    def _read(self, file: Any, count: int) -> bytes:
        try:
            content = file.read(count)
        except (OSError, zlib.error, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{self.path} is damaged: {error}") from error
        if len(content) != count:
            raise UserError(f"{self.path} is truncated: arr_0 ends {count - len(content)} bytes early")
        return content


@contextmanager
def _rows(path: Path) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The data of `arr_0` inside an npz as an open file, and its shape, checked."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            if "arr_0.npy" not in archive.namelist():
                raise UserError(f"{path} has no images (arr_0); it has: {', '.join(archive.namelist())}")
            file = stack.enter_context(archive.open("arr_0.npy"))
            old = np.lib.format.read_magic(file) == (1, 0)
            read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"{path} is not a readable npz file: {error}") from error
        if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not shape[0]:
            kind = "pickled objects, which are never read" if dtype.hasobject else f"{dtype} {shape}"
            raise UserError(f"{path}: arr_0 must be uint8 (images, size, size, 3), found {kind}")
        yield file, shape


def open_images(path: str | Path, key: str = "--samples") -> NpzImages | SourceImages:
    """The images of an npz file, or all image files under a folder, as they are."""
    path = Path(path)
    if path.suffix == ".npz":
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        return NpzImages(path)
    return SourceImages(LooseSource(str(path), key), "folder", None)


class NpzWriter:
    """Writes `arr_0` (count,size,size,3) of an npz in the layout of ADM, rows in any order and from any rank.

    All ranks call the constructor, `write` and `finish`. The rows lie in a file beside it until then.
    """

    def __init__(self, path: Path, count: int, image_size: int, world: World) -> None:
        self.path, self.world, self.rows = path, world, path.with_suffix(".rows.npy")
        if path.exists():
            raise UserError(f"{path} exists already; remove it or name another file")
        if world.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (count, image_size, image_size, 3)
            np.lib.format.open_memmap(self.rows, mode="w+", dtype=np.uint8, shape=shape).flush()
        world.barrier()
        self.table = np.load(self.rows, mmap_mode="r+", allow_pickle=False)

    def write(self, ids: Tensor, images_u8: Tensor) -> None:
        """Images (b,3,H,W) number `ids` (b,)."""
        self.table[ids.numpy()] = images_u8.cpu().permute(0, 2, 3, 1).numpy()

    def finish(self, **arrays: Any) -> None:
        """Packs the rows, and other arrays beside them."""
        self.table.flush()
        self.world.barrier()
        if self.world.is_main:
            write_arrays(self.path, arr_0=self.table, **arrays)
            self.rows.unlink()
