"""Originals and reconstructions that another program has written, in pairs: by the names of files, or by number.

    two folders     files with the same path below the folders; suffixes may differ, as cats/tom.JPEG and cats/tom.png
    one folder      with both: the original of tom.png is tom_gt.png, as `tokenizer.reconstruct` writes them; such a
                    folder also serves as originals alone
    two npz files   `arr_0` of each, uint8 (n,H,W,3); image i of one belongs to image i of the other

Nothing is cropped, resized or rounded: both images of a pair have one size, which may differ from pair to pair. What
has no partner, or one of another size, is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from engine.checkpoint.manifest import json_digest
from engine.data.folders import LooseSource
from engine.data.images import image_tensor, printable, read_image
from engine.messages import UserError
from engine.progress import progress
from engine.world import World
from evaluations.image_sets import NPZ_FORMAT, NpzImages, is_npz, listed_source, rank_batches, stored_header
from tokenizer.pair_names import ORIGINAL

# The flags that name them.
ORIGINALS, RECONSTRUCTIONS = "--originals", "--reconstructions"
# Formats that keep every pixel; any other one may not, and some of its files (WebP, say) do all the same.
LOSSLESS = frozenset({"PNG", "BMP", "PPM", "TIFF", NPZ_FORMAT})
NAMED_OF_A_KIND = 3  # images without a partner that a message names


class PairBatch(NamedTuple):
    """Some pairs, all of one size."""

    ids: Tensor  # (B,) int64, numbers of the pairs
    originals: Tensor  # uint8 (B,3,H,W)
    reconstructions: Tensor  # uint8 (B,3,H,W)


class ImagePairs(Protocol):
    """Pairs in a fixed order, opened by `open_pairs`."""

    paired: str  # what pairs them: by name, or by number
    is_one_size: bool  # whether all images have the size of the first; where not, they may differ

    def __len__(self) -> int: ...
    def first_size(self) -> int | None:
        """The side of the first original by its header, in pixels; None where it is not square."""

    def look(self, world: World) -> PairFacts:
        """Reads the header of every image. Raises UserError for a pair of two sizes, and for what is no image."""

    def batches(self, size: int, world: World) -> Iterator[PairBatch]:
        """The batches of this rank; one with several sizes of images is divided into parts of one size each."""

    def ids(self) -> str:
        """What a result says about which pairs these are."""


class PairFacts(NamedTuple):
    """What the headers of all images say, and which images they are."""

    image_size: int | None  # side in pixels; None where images are not square, or differ in size
    least_side: int  # of all images, pixels
    originals: dict[str, Any]  # facts for protocols, `file_format` among them
    reconstructions: dict[str, Any]

    def lossy_formats(self) -> str:
        """The formats of reconstructions that may not keep every pixel, such as "JPEG"; empty for lossless ones."""
        formats = self.reconstructions["file_format"].split(", ")
        return ", ".join(name for name in formats if name not in LOSSLESS)


def open_pairs(originals: Path, reconstructions: Path) -> ImagePairs:
    """The pairs in two folders, in one folder with both, or in two npz files. Only names and headers of npz are read.

    Raises UserError where an image has no partner, and for a folder beside an npz file.
    """
    are_npz = is_npz(originals, ORIGINALS), is_npz(reconstructions, RECONSTRUCTIONS)
    if are_npz[0] != are_npz[1]:
        raise UserError(
            f"{ORIGINALS} {originals} and {RECONSTRUCTIONS} {reconstructions} must be two folders or two npz files: "
            "names and numbers make no pairs"
        )
    return NpzPairs(originals, reconstructions) if are_npz[0] else FolderPairs(originals, reconstructions)


# ------------------------------------------------------------------------------------------------ folders
class FolderPairs:
    """Image files by name, in the order of their names without suffix."""

    paired = "by name"
    is_one_size = False

    def __init__(self, originals: Path, reconstructions: Path) -> None:
        # Which images of the folders: of one that has both, each kind by the ends of the names.
        self.originals = _originals_in(originals)
        self.reconstructions = listed_source(reconstructions, RECONSTRUCTIONS, skip_broken=False)
        names = [name for name in self.reconstructions.names if not _is_original(name)]
        if originals.resolve() == reconstructions.resolve() and not (names and _is_original(self.originals.names[0])):
            raise UserError(
                f"{ORIGINALS} and {RECONSTRUCTIONS} are one folder, {originals}: then the original of NAME.png must be "
                f"NAME{ORIGINAL}.png beside it"
            )
        if 0 < len(names) < len(self.reconstructions):
            _take_named(self.reconstructions, names)

        # The files of each name.
        of_originals = _paths_by_name(self.originals, ORIGINALS)
        of_reconstructions = _paths_by_name(self.reconstructions, RECONSTRUCTIONS)
        self._require_partners(of_originals, of_reconstructions)
        self.names = sorted(of_originals)
        self.paths = [(of_originals[name], of_reconstructions[name]) for name in self.names]
        self.sizes: list[tuple[int, int]] = []  # width and height of each pair, once `look` has been called

    def _require_partners(self, originals: Mapping[str, Path], reconstructions: Mapping[str, Path]) -> None:
        """Raises UserError that names images without a partner."""
        problems = []
        for flag, source, missing in (
            (RECONSTRUCTIONS, self.reconstructions, sorted(originals.keys() - reconstructions.keys())),
            (ORIGINALS, self.originals, sorted(reconstructions.keys() - originals.keys())),
        ):
            if missing:
                named = ", ".join(map(printable, missing[:NAMED_OF_A_KIND]))
                problems.append(f"{flag} {source.name} has no image for {len(missing)} of the others: {named}")
        if problems:
            raise UserError("; ".join([*problems, "pairs have the same name, without suffix"]))

    def __len__(self) -> int:
        return len(self.names)

    def ids(self) -> str:
        return f"{len(self)} names, {json_digest(self.names)[:16]}"

    def first_size(self) -> int | None:
        width, height = stored_header(self.paths[0][0]).size
        return width if width == height else None

    def look(self, world: World) -> PairFacts:
        formats: tuple[set[str], set[str]] = (set(), set())
        self.sizes = []
        for original, reconstruction in progress(self.paths, "sizes of images", world, "pair"):
            headers = stored_header(original), stored_header(reconstruction)
            if headers[0].size != headers[1].size:
                sizes = [f"{width}x{height}" for _, (width, height) in headers]
                raise UserError(
                    f"{printable(reconstruction)} has {sizes[1]} pixels, its original {printable(original)} has "
                    f"{sizes[0]}: both images of a pair have one size"
                )
            self.sizes.append(headers[0].size)
            for of_kind, header in zip(formats, headers, strict=True):
                of_kind.add(header.format)

        width, height = self.sizes[0]
        is_one_size = width == height and all(size == (width, height) for size in self.sizes)
        facts = [
            {"data": source.name, "content": source.identity(), "file_format": ", ".join(sorted(of_kind))}
            for source, of_kind in zip((self.originals, self.reconstructions), formats, strict=True)
        ]
        return PairFacts(width if is_one_size else None, min(map(min, self.sizes)), *facts)

    def batches(self, size: int, world: World) -> Iterator[PairBatch]:
        for ids in rank_batches(len(self), size, world):
            for _, of_one_size in groupby(ids.tolist(), key=self.sizes.__getitem__):
                numbers = list(of_one_size)
                pairs = [self._read(number) for number in numbers]
                originals, reconstructions = (torch.stack(images) for images in zip(*pairs, strict=True))
                yield PairBatch(torch.tensor(numbers), originals, reconstructions)

    def _read(self, number: int) -> list[Tensor]:
        """The two images of a pair, uint8 (3,H,W)."""
        return [image_tensor(read_image(path, hint="")) for path in self.paths[number]]


def _is_original(name: str) -> bool:
    """Whether a file is an original by the end of its name."""
    return PurePosixPath(name).stem.endswith(ORIGINAL)


def _originals_in(folder: Path) -> LooseSource:
    """The originals in a folder: those whose names say so, where there are some, else all images of the set."""
    source = LooseSource(folder, ORIGINALS)
    names = [name for name in source.names if _is_original(name)]
    if not names:
        return listed_source(folder, ORIGINALS, skip_broken=False)
    if len(names) < len(source):
        _take_named(source, names)
    return source


def _take_named(source: LooseSource, names: Sequence[str]) -> None:
    """Keeps only the files of these names."""
    source.take([source.folder.resolve() / name for name in names])


def _paths_by_name(source: LooseSource, flag: str) -> dict[str, Path]:
    """{path below the folder, without suffix and the mark of originals: file} of the images of a folder.

    Raises UserError where two files have one name then.
    """
    paths: dict[str, Path] = {}
    for name in source.names:
        plain = str(PurePosixPath(name).with_suffix("")).removesuffix(ORIGINAL)
        path = source.folder / name
        if plain in paths:
            raise UserError(
                f"{flag}: {printable(paths[plain])} and {printable(path)} have one name without suffix; which is meant?"
            )
        paths[plain] = path
    return paths


# ------------------------------------------------------------------------------------------------ npz files
class NpzPairs:
    """The images of two npz files by number."""

    paired = "by number"
    is_one_size = True

    def __init__(self, originals: Path, reconstructions: Path) -> None:
        if originals.resolve() == reconstructions.resolve():
            raise UserError(f"{ORIGINALS} and {RECONSTRUCTIONS} are one file, {originals}")
        self.originals = NpzImages(originals)
        self.reconstructions = NpzImages(reconstructions)
        shorter, longer = sorted((self.originals, self.reconstructions), key=len)
        if len(shorter) != len(longer):
            raise UserError(
                f"{shorter.path} has {len(shorter)} images, {longer.path} {len(longer)}: image {len(shorter)} "
                "(from 0) is the first without a partner"
            )
        if self.originals.shape != self.reconstructions.shape:
            sizes = [f"{images.image_size}x{images.image_size}" for images in (self.originals, self.reconstructions)]
            raise UserError(f"{reconstructions} has images of {sizes[1]} pixels, its originals {originals} {sizes[0]}")

    def __len__(self) -> int:
        return len(self.originals)

    def ids(self) -> str:
        return self.originals.ids()

    def first_size(self) -> int | None:
        return self.originals.image_size

    def look(self, world: World) -> PairFacts:
        facts = [
            {"data": str(images.path), "content": images.version, "file_format": images.file_format()}
            for images in (self.originals, self.reconstructions)
        ]
        size = self.originals.image_size
        return PairFacts(size, size, *facts)

    def batches(self, size: int, world: World) -> Iterator[PairBatch]:
        batches = (images.batches(size, world) for images in (self.originals, self.reconstructions))
        for originals, reconstructions in zip(*batches, strict=True):
            yield PairBatch(originals.ids, originals.images, reconstructions.images)
