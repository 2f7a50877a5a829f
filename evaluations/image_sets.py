"""Sets of images that metrics are computed over, read in batches: an npz file, a folder, a data set."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.checkpoint.manifest import file_sha256, json_digest
from engine.data.decoding import Decoding
from engine.data.folders import LooseSource
from engine.data.images import ImageError, image_tensor, printable
from engine.data.samples import center_batch
from engine.data.sources import ImageSource, log_replaced, read_source
from engine.messages import UserError, logger
from engine.outputs import listed_images, require_absent
from engine.progress import image_bar
from engine.world import World
from evaluations.results import write_arrays

# How protocols name what is done to images.
CENTER_CROP = "center"
RESIZE = "bicubic, not antialiased"  # of `engine.data.images.resize_for_evaluation`, where sizes differ
ROUNDING = "uint8(clamp(127.5 x + 128))"  # of `engine.data.images.to_uint8`
AS_STORED = "none"  # a crop or resize of images that are taken as they are
NPZ_FORMAT = "npz"
LABEL_KEYS = ("labels", "arr_1")  # of an npz file: ours, and that of ADM's samples


def decoding_facts(decoding: Decoding) -> dict[str, str]:
    """What a protocol says about background and orientation, as far as they are not the default ones."""
    text = decoding.suffix().strip()
    return {"decoding": text} if text else {}


class ImageBatch(NamedTuple):
    """Some images of a set."""

    ids: Tensor  # (B,) int64, numbers of the images
    images: Tensor  # uint8 (B,3,H,W)


class ImageSequence(Protocol):
    """A set of images in a fixed order. `facts` and `version` may read whole files when they are first asked for."""

    image_size: int | None  # None where images differ in size

    @property
    def facts(self) -> dict[str, Any]:
        """What the images are, for protocols."""

    @property
    def version(self) -> str:
        """Changes when the files do, on this machine: for caches."""

    def __len__(self) -> int: ...
    def batches(self, size: int, world: World) -> Iterator[ImageBatch]:
        """The batches of this rank; whole batches are dealt to the ranks in turn."""


def rank_batches(count: int, size: int, world: World) -> list[Tensor]:
    """Image numbers of this rank's batches.

    The batches are the same for any number of ranks, so that rounding is too.
    """
    return list(torch.arange(count).split(size)[world.rank :: world.size])


B = TypeVar("B", bound=tuple)


def with_bar(batches: Iterator[B], count: int, title: str, world: World) -> Iterator[B]:
    """The batches of this rank, with a bar that counts the images of all ranks.

    The first part of a batch are image numbers.
    """
    with image_bar(count, title, world) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch[0]) * world.size)


def numbered_ids(count: int) -> str:
    """What a result says about images that have numbers and no names, in their order."""
    return f"images 0 to {count - 1}"


class SourceImages:
    """Center crops of a data set, or with `image_size=None` its images as they are, all of one size."""

    def __init__(self, source: ImageSource, split: str, image_size: int | None, skip_broken: bool) -> None:
        self.source = source
        self.split = split
        self.skip_broken = skip_broken
        self.is_cropped = image_size is not None
        self.image_size = image_size if self.is_cropped else read_source(source, 0, skip_broken)[0].width

    @cached_property
    def version(self) -> str:
        return self.source.version()

    @cached_property
    def facts(self) -> dict[str, Any]:
        return {
            "data": self.source.name,
            "split": self.split,
            "crop": CENTER_CROP if self.is_cropped else AS_STORED,
            "content": self.source.identity(),
            "skip_broken": self.skip_broken,
        }

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, size: int, world: World) -> Iterator[ImageBatch]:
        for ids in rank_batches(len(self), size, world):
            if self.is_cropped:
                yield ImageBatch(ids, center_batch(self.source, self.image_size, ids.numpy(), self.skip_broken))
            else:
                yield ImageBatch(ids, torch.stack([self._whole(int(i)) for i in ids]))
        log_replaced(self.source)

    def _whole(self, index: int) -> Tensor:
        """Image `index` as it is. Raises UserError where it has another size than the first."""
        image, index, _ = read_source(self.source, index, self.skip_broken)
        if image.size != (self.image_size, self.image_size):
            raise UserError(
                f"{self.source.where(index)} has {image.width}x{image.height} pixels, the first image "
                f"{self.image_size}x{self.image_size}; a set of samples has one square size"
            )
        return image_tensor(image)


class StoredHeader(NamedTuple):
    """What the header of an image file says."""

    format: str  # such as PNG, by the content of the file, not its name
    size: tuple[int, int]  # width and height in pixels, as stored


def stored_header(path: Path) -> StoredHeader:
    """Reads the header of an image file, and no more of it. Raises ImageError where it cannot be read."""
    try:
        with Image.open(path) as file:
            return StoredHeader(str(file.format), file.size)
    except Exception as error:  # decoders raise whatever they meet
        raise ImageError(f"{printable(path)} is not a readable image ({error})") from error


class FolderImages(SourceImages):
    """All image files under a folder, as they are."""

    def __init__(self, source: LooseSource, skip_broken: bool) -> None:
        super().__init__(source, "folder", None, skip_broken)
        self.paths = source.paths
        self.folder = source.folder

    def ids(self) -> str:
        """What a result says about which images these are: by their names, which sorted are their order."""
        names = [str(path.relative_to(self.folder)) for path in self.paths]
        return f"{len(names)} names, {json_digest(names)[:16]}"

    def labels(self) -> Tensor | None:
        """The classes of the images (n,) by their folders, in the order of the images; None where all are in one."""
        folders = [path.parent for path in self.paths]
        numbers = {folder: number for number, folder in enumerate(dict.fromkeys(folders))}
        return torch.tensor([numbers[folder] for folder in folders]) if len(numbers) > 1 else None

    def file_format(self) -> str:
        """In which formats the images are stored, such as "PNG" or "JPEG, PNG": by their content, not their names."""
        formats = set()
        for path in self.paths:
            try:
                formats.add(stored_header(path).format)
            except ImageError:
                if not self.skip_broken:
                    raise
        return ", ".join(sorted(formats))


class NpzImages:
    """`arr_0` of an npz file, uint8 (n,H,W,3), which may be larger than memory.

    It is read from the archive row by row. `sha256` of the file, where it is known: to compute it takes half a minute
    for 10 GB.
    """

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.path = path
        self._sha256 = sha256
        with _open_rows(path) as (_, shape):
            self.shape = shape
        self.image_size = shape[1]

    @cached_property
    def version(self) -> str:
        return self._sha256 or file_sha256(self.path)

    @cached_property
    def facts(self) -> dict[str, Any]:
        return {"data": str(self.path), "split": "file", "crop": AS_STORED, "content": self.version}

    def labels(self) -> Tensor | None:
        """The classes of the images, int64 (n,), where the file has them: `labels`, or `arr_1` as ADM's samples."""
        with np.load(self.path, allow_pickle=False) as stored:
            for key in LABEL_KEYS:
                if key not in stored.files:
                    continue
                try:
                    labels = stored[key]
                except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
                    raise UserError(f"{self.path}: {key} cannot be read: {error}") from error
                if labels.shape == (len(self),) and np.issubdtype(labels.dtype, np.integer):
                    return torch.from_numpy(labels.astype(np.int64))
        return None

    def ids(self) -> str:
        """What a result says about which images these are: rows of a file have numbers."""
        return numbered_ids(len(self))

    def file_format(self) -> str:
        """In which format the images are stored."""
        return NPZ_FORMAT

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int, world: World) -> Iterator[ImageBatch]:
        _, height, width, channels = self.shape
        row_bytes = height * width * channels
        with _open_rows(self.path) as (file, _):
            position = 0
            for ids in rank_batches(len(self), size, world):
                self._read(file, (int(ids[0]) - position) * row_bytes)  # the batches of other ranks
                content = np.frombuffer(self._read(file, len(ids) * row_bytes), np.uint8)
                position = int(ids[-1]) + 1
                images = content.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).copy()
                yield ImageBatch(ids, torch.from_numpy(images))

    def _read(self, file: Any, num_bytes: int) -> bytes:
        """The next bytes. Raises UserError where there are fewer."""
        try:
            content = file.read(num_bytes)
        except (OSError, zlib.error, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{self.path} is damaged: {error}") from error
        if len(content) != num_bytes:
            raise UserError(f"{self.path} is truncated: arr_0 ends {num_bytes - len(content)} bytes early")
        return content


@contextmanager
def _open_rows(path: Path) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The data of `arr_0` inside an npz as an open file, and its shape.

    Raises UserError unless it holds images.
    """
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            if "arr_0.npy" not in archive.namelist():
                raise UserError(f"{path} has no images (arr_0); it has: {', '.join(archive.namelist())}")
            file = stack.enter_context(archive.open("arr_0.npy"))
            shape, fortran_order, dtype = _read_header(file)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"{path} is not a readable npz file: {error}") from error

        has_images_shape = len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2] and shape[0] > 0
        if dtype != np.uint8 or fortran_order or not has_images_shape:
            content = "pickled objects, which are never read" if dtype.hasobject else f"{dtype} {shape}"
            raise UserError(f"{path}: arr_0 must be uint8 (images, size, size, 3), found {content}")
        yield file, shape


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether in Fortran order, dtype) of an .npy file, which then stands at its data."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def open_images(path: str | Path, key: str = "--samples", skip_broken: bool = False) -> NpzImages | FolderImages:
    """The images of an npz file, or all image files under a folder, as they are: of one that this program filled, the
    images of the set.

    `key` names the flag in errors.
    """
    path = Path(path)
    return NpzImages(path) if is_npz(path, key) else FolderImages(listed_source(path, key, skip_broken), skip_broken)


def survey_images(path: str | Path, key: str = "--samples", skip_broken: bool = False) -> int:
    """How many images `open_images` would find: by the header of an npz file or the listing of a folder.

    No image is decoded, and no file read as a whole. Raises UserError where nothing is there that can be opened.
    """
    path = Path(path)
    return len(NpzImages(path) if is_npz(path, key) else listed_source(path, key, skip_broken))


def is_npz(path: Path, key: str) -> bool:
    """Whether a path names an npz file, as opposed to a folder. Raises UserError for one that does not exist."""
    if path.suffix == ".npz" and not path.is_file():
        raise UserError(f"{key}: {path} does not exist")
    return path.suffix == ".npz"


def listed_source(path: Path, key: str, skip_broken: bool) -> LooseSource:
    """The images of a folder, of one that this program filled those of the set: no grids, and no originals beside
    reconstructions. Only names are read.
    """
    source = LooseSource(path, key, skip_broken)
    listed = listed_images(path)
    if listed is not None:
        logger.info(
            "%s: %d images of the set, %d other pictures left out", path, len(listed), len(source) - len(listed)
        )
        source.take(listed)
    return source


class NpzWriter:
    """Writes `arr_0` (count,size,size,3) of an npz in the layout of ADM.

    Rows may come in any order and from any rank. All ranks call the constructor, `write` and `finish`. The rows lie in
    a file beside it until then.
    """

    def __init__(self, path: Path, count: int, image_size: int, world: World) -> None:
        self.path = path
        self.world = world
        self.rows_path = path.with_suffix(".rows.npy")
        require_absent(path, "the output file")

        # The main rank makes the file, then every rank maps it.
        if world.is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (count, image_size, image_size, 3)
            np.lib.format.open_memmap(self.rows_path, mode="w+", dtype=np.uint8, shape=shape).flush()
        world.barrier()
        self.rows = np.load(self.rows_path, mmap_mode="r+", allow_pickle=False)

    def write(self, ids: Tensor, images_u8: Tensor) -> None:
        """Writes the images (B,3,H,W) number `ids` (B,)."""
        self.rows[ids.numpy()] = images_u8.cpu().permute(0, 2, 3, 1).numpy()

    def finish(self, **arrays: Any) -> None:
        """Packs the rows, and other arrays beside them."""
        self.rows.flush()
        self.world.barrier()
        if self.world.is_main:
            write_arrays(self.path, arr_0=self.rows, **arrays)
            self.rows_path.unlink()
