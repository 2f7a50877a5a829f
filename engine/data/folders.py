"""Images in folders: one sub-folder per class (ImageNet layout), or files at any depth.

A start lists them, unless there is an index of the folder (`engine.data.folder_index`).
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.arithmetic import ceil_div
from engine.data.base import PathKind, SourceConfig
from engine.data.folder_index import FolderIndex
from engine.data.held_out import are_held_out
from engine.data.identity import digest_of
from engine.data.images import IMAGE_SUFFIXES, ImageError, printable, read_image
from engine.data.listing import FolderState, Listing, by_parts, is_folder, list_below, list_folder, unreadable
from engine.data.name_table import NameTable
from engine.messages import UserError, logger

HASHED_IMAGES = 2048  # at most so many images enter the identity of a data set with their content
SIZED_FILES = 100_000  # of at most so many files a start asks the size, which may take long on network disks
NAMES_DIGEST, SIZES_DIGEST = "names of files", "sizes of files"  # keys of `contents`
ACCEPTED = f"accepted: {' '.join(sorted(IMAGE_SUFFIXES))}"


def identity_of(listing: Iterable[bytes], count: int, read: Callable[[int], bytes]) -> str:
    """SHA-256 over a listing of all images, in pieces, and the content of evenly spread ones (all of a small set)."""
    digest = hashlib.sha256()
    for piece in listing:
        digest.update(piece)
    for index in range(0, count, ceil_div(count, HASHED_IMAGES)):
        digest.update(read(index))
    return digest.hexdigest()[:16]


def version_of(paths: Iterable[Path], skip_broken: bool = False) -> str:
    """Cache key from file modification times. Valid on this machine only.

    Raises ImageError for a file that is gone or not accessible, unless such files are skipped.
    """
    times = "".join(f"{_stat_field(path, 'st_mtime_ns', skip_broken)} " for path in paths)
    return hashlib.sha256(times.encode()).hexdigest()[:16]


def _stat_field(path: Path, field: str, skip_broken: bool) -> int | str:
    """One number that the file system knows of a file; for one that is skipped a word in its place."""
    try:
        return getattr(path.stat(), field)
    except OSError as error:
        if not skip_broken:
            raise unreadable(path, error) from error
        return "unreadable"


# ------------------------------------------------------------------------------------------------ sources
class FileSource(PathKind):
    """The common part of the two layouts: one file per image; `names[i]` is that of image i, relative to the folder."""

    decodes_files = True
    lists_held_out = True

    name: str
    folder: Path
    skip_broken: bool
    names: NameTable
    labels: np.ndarray
    class_names: list[str]
    states: dict[str, FolderState]  # of the folders that were listed, by name relative to `folder`; empty with an index
    index: FolderIndex | None = None  # where the names come from, if not from a listing
    is_part: bool = False  # of the images of the folder, this is one split

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False, *, use_index: bool = True) -> None:
        self.require(root, key)
        self.folder = Path(root)
        self.name = printable(self.folder)
        self.skip_broken = skip_broken
        self.index = FolderIndex.find(self._index_path()) if use_index else None
        if self.index is None:
            self._list(key)
        else:
            self._take_index(self.index)

    @abstractmethod
    def _list(self, key: str) -> None:
        """Lists the files and sets all that this source knows of them."""

    # -------------------------------------------------------------------------------------------- the index
    def _index_path(self) -> Path:
        return FolderIndex.path(type(self).__name__, self.folder, self.skip_broken)

    def _take_index(self, index: FolderIndex) -> None:
        """Takes all that a listing would find from an index. Raises UserError where that is stale."""
        changed = index.changed_folder(self.folder)
        if changed is not None:
            raise UserError(
                f"the index {index.file} of {self.name} is stale: {printable(changed)} changed since it was built; "
                f"build it again (python -m engine.index_images --data-path {self.name}), or remove it"
            )
        self.names = index.names
        self.labels = index.labels
        self.class_names = index.class_names
        self.num_hidden = index.num_hidden
        self.states = {}
        logger.info("%s: %s images by the index %s", self.name, f"{len(self):,}", index.file)

    @classmethod
    def build_index(cls, root: str | Path, key: str, skip_broken: bool = False) -> Path:
        """Lists the files, and writes an index for the next starts; returns its file."""
        source = cls(root, key, skip_broken, use_index=False)
        index = FolderIndex(
            source._index_path(),
            names=source.names,
            labels=source.labels,
            class_names=source.class_names,
            num_hidden=source.num_hidden,
            digest=source.contents()[NAMES_DIGEST],
            folders=NameTable.of(source.states),
            folder_times=np.array([state.modified for state in source.states.values()], dtype=np.int64),
        )
        index.save(source.name)
        return index.file

    # -------------------------------------------------------------------------------------------- held-out images
    @classmethod
    def root(cls, config: SourceConfig, split: str) -> str:
        """The path of a split; that of the training images for held-out ones that are listed by name."""
        return super().root(config, "train" if config.held_out else split)

    def take_split(self, config: SourceConfig, split: str) -> None:
        """Keeps the images that `data.held_out` lists, or the others for training. Classes stay, also empty ones.

        Raises UserError for a list that cannot be read, names what is not there, or leaves a split without images.
        """
        if not config.held_out:
            return
        is_held_out = are_held_out(self.names, config.held_out, self.name)
        chosen = np.flatnonzero(is_held_out if split == "val" else ~is_held_out)
        if not len(chosen):
            other = "none" if split == "val" else "all"
            raise UserError(
                f"data.held_out={config.held_out!r} lists {other} of the {len(self):,} images of {self.name}"
            )
        self.names = NameTable.of(self.names[index] for index in chosen)
        self.labels = np.asarray(self.labels)[chosen]
        self.is_part = True

    # -------------------------------------------------------------------------------------------- the images
    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / self.names[index]

    @property
    def paths(self) -> list[Path]:
        """The files of all images, which takes long for many: `path` gives one."""
        return [self.path(index) for index in range(len(self))]

    def is_current(self) -> bool:
        """Whether no name was added to the folders, or taken from them, since they were listed."""
        if self.index is not None:
            return self.index.changed_folder(self.folder) is None
        try:
            return all(FolderState.of(self.folder / name) == state for name, state in self.states.items())
        except OSError:
            return False

    def image(self, index: int) -> Image.Image:
        return read_image(self.path(index), self.decoding)

    def where(self, index: int) -> str:
        return printable(self.path(index))

    def identity(self) -> str:
        """SHA-256 over names and sizes of all files, and the content of evenly spread ones.

        A decoding that is not the default one is added. Raises ImageError for a file that cannot be read, unless such
        files are skipped.
        """
        listing = (os.fsencode(name) + f" {self._stat(name, 'st_size')}\n".encode() for name in self.names)
        return identity_of(listing, len(self), self._content) + self.decoding.suffix()

    def contents(self) -> dict[str, str]:
        """Digests of the names of all files, and of the sizes of evenly spread ones (all of most sets)."""
        sized = self.names[:: ceil_div(len(self), SIZED_FILES)]
        return {
            NAMES_DIGEST: self._digest_of_names(),
            SIZES_DIGEST: digest_of(str(self._stat(name, "st_size")).encode() for name in sized),
        }

    def _digest_of_names(self) -> str:
        """Of all names; the index has it already, unless this is a part of its images."""
        if self.index is not None and not self.is_part:
            return self.index.digest
        return digest_of(self.names.all_encoded())

    def _stat(self, name: str, field: str) -> int | str:
        """See `_stat_field`."""
        return _stat_field(self.folder / name, field, self.skip_broken)

    def _content(self, index: int) -> bytes:
        """The bytes of a file, for the identity; none where it is skipped."""
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            if not self.skip_broken:
                raise unreadable(self.path(index), error) from error
            return b""

    def version(self) -> str:
        files = (self.folder / name for name in self.names)
        return version_of(files, self.skip_broken) + self.decoding.suffix()


class FolderSource(FileSource):
    """A folder in ImageNet layout: one sub-folder per class, classes and files in alphabetical order.

    Hidden names are left out. Raises UserError for a missing folder or a class folder without images, and ImageError
    for a file that is not an image; with `skip_broken` such files are left out and counted.
    """

    @classmethod
    def require(cls, root: str | Path, key: str) -> None:
        if not is_folder(root):
            raise UserError(f"{key}={printable(root)!r} is not a folder; give one with a sub-folder per class")

    def _list(self, key: str) -> None:
        folder = self.folder

        # The classes. A link that leads nowhere may have been one, and without it all labels would shift.
        top = list_folder(folder)
        if top.broken:
            raise UserError(
                f"{printable(folder / top.broken[0])} is a link that leads nowhere; mount its target, or remove it"
            )
        if not top.folders:
            raise UserError(
                f"{key}={self.name!r} has no class folders (expected one sub-folder of images per class)"
                f"{flat_hint(len(top.images))}"
            )
        self.class_names = [printable(name) for name in top.folders]

        if top.images:
            logger.warning("%s: left out %d images that lie beside the class folders", self.name, len(top.images))

        # The images of each class.
        counts = []
        total = Listing(num_hidden=top.num_hidden, num_links=top.num_links, states=top.states)
        num_nested = 0
        for class_name in tqdm(top.folders, desc="listing images", unit="class", leave=False, disable=None):
            listing = list_folder(folder / class_name)
            _check_class(folder / class_name, listing, key, self.skip_broken)
            counts.append(len(listing.images))
            num_nested += len(listing.folders)
            total.add(listing, class_name)
        total.log(folder, num_nested)
        self.names = NameTable.of(total.images)
        self.states = total.states
        self.num_hidden = total.num_hidden
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """A folder with sub-folders, which then are classes."""
        return is_folder(path) and bool(list_folder(Path(path)).folders)


def flat_hint(num_images: int) -> str:
    """What to do about a folder that holds images itself."""
    return f"; its {num_images:,} images have no classes: read them with data.name=loose" if num_images else ""


def _check_class(folder: Path, listing: Listing, key: str, skip_broken: bool) -> None:
    """Raises ImageError for what is no image without `skip_broken`, and UserError if there are no images."""
    strangers = [
        *((name, "") for name in listing.others),
        *((name, " but a folder") for name in listing.folders),
        *((name, " but a link that leads nowhere, or a pipe") for name in listing.broken),
    ]
    if strangers and not skip_broken:
        name, kind = min(strangers)
        raise ImageError(f"{printable(folder / name)} is not an image file{kind} ({ACCEPTED}); {_remedy(key)}")
    if not listing.images:
        raise UserError(f"class folder {printable(folder)} holds no images; remove it or fill it")


def _remedy(key: str) -> str:
    """What can be done about a file that is no image; `key` named the folder."""
    if key.startswith("data."):
        return "remove it, or set data.skip_broken=true (--skip-broken of commands that have it)"
    return "remove it, or use --skip-broken"


class LooseSource(FileSource):
    """All image files under a folder, at any depth, with one label; other files are counted and ignored.

    Hidden names are left out, symbolic links are followed. Raises UserError if the folder is missing or holds no image
    file, and ImageError for links that lead nowhere; with `skip_broken` these are left out and counted.
    """

    has_classes = False

    @classmethod
    def require(cls, root: str | Path, key: str) -> None:
        if not is_folder(root):
            raise UserError(f"{key}={printable(root)!r} is not a folder of images")

    def _list(self, key: str) -> None:
        folder = self.folder
        self.class_names = ["all"]

        listing = list_below(folder)
        if listing.broken and not self.skip_broken:
            broken = printable(folder / min(listing.broken, key=by_parts))
            raise ImageError(f"{broken} is a link that leads nowhere, or a pipe; {_remedy(key)}")
        self.names = NameTable.of(listing.images)
        self.states = listing.states
        if not self.names:
            raise UserError(f"{key}={self.name!r} holds no image files ({ACCEPTED})")
        if listing.others:
            logger.info("%s: %d images; ignored %d others", self.name, len(self), len(listing.others))
            listing.others = []
        listing.log(folder)
        self.num_hidden = listing.num_hidden
        self.labels = np.zeros(len(self), dtype=np.int64)

    def take(self, paths: Sequence[Path]) -> None:
        """Keeps only these files."""
        self.folder = self.folder.resolve()
        self.names = NameTable.of(sorted((str(path.relative_to(self.folder)) for path in paths), key=by_parts))
        self.index = None
        self.labels = np.zeros(len(self), dtype=np.int64)

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """Any path: this kind is asked last, and its error says what is missing."""
        return True
