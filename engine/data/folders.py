"""Images in folders: one sub-folder per class (ImageNet layout), or files at any depth."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from engine.arithmetic import ceil_div
from engine.data.base import PathKind
from engine.data.identity import digest_of
from engine.data.images import IMAGE_SUFFIXES, ImageError, printable, read_image
from engine.messages import UserError, logger

HASHED_IMAGES = 2048  # at most so many images enter the identity of a data set with their content
SIZED_FILES = 100_000  # of at most so many files a start asks the size, which may take long on network disks
MACOS_FOLDER = "__MACOSX"  # of archives that were packed there
ACCEPTED = f"accepted: {' '.join(sorted(IMAGE_SUFFIXES))}"


def is_image_name(name: str) -> bool:
    """Whether a file name has one of the accepted suffixes."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and not stem.endswith("/") and f".{suffix.lower()}" in IMAGE_SUFFIXES


def identity_of(listing: bytes, count: int, read: Callable[[int], bytes]) -> str:
    """SHA-256 over a listing of all images, and the content of evenly spread ones (all of a small set)."""
    digest = hashlib.sha256(listing)
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
            raise _unreadable(path, error) from error
        return "unreadable"


def _unreadable(path: Path, error: OSError) -> ImageError:
    return ImageError(f"{printable(path)} cannot be read ({error.strerror}); mount it, or remove it")


# ------------------------------------------------------------------------------------------------ listing
def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: caches of editors and notebooks, traces of macOS."""
    return name.startswith(".") or name == MACOS_FOLDER


@dataclass(frozen=True)
class FolderState:
    """What changes when a name is added to a folder, or taken from it."""

    device: int
    inode: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, folder: Path) -> FolderState:
        """That of a folder now. Raises OSError where it cannot be seen."""
        status = folder.stat()
        return cls(status.st_dev, status.st_ino, status.st_mtime_ns)


@dataclass
class Listing:
    """What lies in a folder, or was met below it: names relative to it.

    Names are strings: ImageNet has 1.28 million files, and a path object for each takes longer than to list them.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # files without the suffix of an image
    broken: list[str] = field(default_factory=list)  # links that lead nowhere, pipes and the like
    num_hidden: int = 0
    num_links: int = 0  # links that were followed
    states: dict[str, FolderState] = field(default_factory=dict)  # of the folders that were listed, before they were

    def add(self, other: Listing, below: str) -> None:
        """Adds what the listing of the folder `below` this one holds, except for its folders."""
        self.images += [_joined(below, name) for name in other.images]
        self.others += [_joined(below, name) for name in other.others]
        self.broken += [_joined(below, name) for name in other.broken]
        self.num_hidden += other.num_hidden
        self.num_links += other.num_links
        self.states |= {_joined(below, name): state for name, state in other.states.items()}

    def log(self, folder: Path, num_nested: int = 0) -> None:
        """Says what was left out, and that links were followed."""
        where = printable(folder)
        if self.num_hidden:
            logger.info('%s: left out %d hidden names (".*", %s)', where, self.num_hidden, MACOS_FOLDER)
        if self.others or num_nested:
            logger.warning(
                "%s: left out %d files that are not images, %d nested folders", where, len(self.others), num_nested
            )
        if self.broken:
            logger.warning("%s: left out %d links that lead nowhere, or pipes", where, len(self.broken))
        if self.num_links:
            logger.info("%s: followed %d symbolic links", where, self.num_links)


def _joined(folder: str, name: str) -> str:
    """A name in a folder; either may be empty."""
    return f"{folder}/{name}" if folder and name else folder or name


def by_parts(name: str) -> str:
    """Sorts names as paths are: folder by folder, so that `a/b` comes before `a-b/c`."""
    return name.replace("/", "\0")


def list_folder(folder: Path) -> Listing:
    """Lists one folder in alphabetical order; symbolic links count as what they lead to.

    Raises ImageError if it cannot be read.
    """
    listing = Listing()
    try:
        listing.states[""] = FolderState.of(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error

    for entry in entries:
        name = entry.name
        if is_hidden(name):
            listing.num_hidden += 1
            continue
        if _is_kind(entry.is_dir):
            listing.folders.append(name)
        elif not _is_kind(entry.is_file):
            listing.broken.append(name)
            continue
        elif is_image_name(name):
            listing.images.append(name)
        else:
            listing.others.append(name)
        listing.num_links += entry.is_symlink()
    return listing


def _is_kind(question: Callable[[], bool]) -> bool:
    """Asks `is_dir` or `is_file` of an entry; a link in a circle or to a forbidden place is neither."""
    try:
        return question()
    except OSError:
        return False


def list_below(root: Path) -> Listing:
    """Lists everything below a folder. Links to folders are entered, except for those that lead back to where one is.

    Raises ImageError for a folder that cannot be read.
    """
    total = Listing()
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        below, ancestors = waiting.pop()
        folder = root / below
        status = folder.stat()
        place = (status.st_dev, status.st_ino)
        if place in ancestors:
            logger.warning("%s leads back to a folder above it; not entered again", printable(folder))
            total.num_links -= 1
            continue
        listing = list_folder(folder)
        total.add(listing, below)
        waiting += [(_joined(below, name), ancestors | {place}) for name in listing.folders]
    total.images.sort(key=by_parts)
    return total


# ------------------------------------------------------------------------------------------------ sources
class FileSource(PathKind):
    """The common part of the two layouts: one file per image; `names[i]` is that of image i, relative to the folder."""

    decodes_files = True

    name: str
    folder: Path
    skip_broken: bool
    names: list[str]
    labels: np.ndarray
    class_names: list[str]
    states: dict[str, FolderState]  # of the folders that were listed, by name relative to `folder`

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
        listing = b"".join(os.fsencode(name) + f" {self._stat(name, 'st_size')}\n".encode() for name in self.names)
        return identity_of(listing, len(self), self._content) + self.decoding.suffix()

    def contents(self) -> dict[str, str]:
        """Digests of the names of all files, and of the sizes of evenly spread ones (all of most sets)."""
        sized = self.names[:: ceil_div(len(self), SIZED_FILES)]
        return {
            "names of files": digest_of(os.fsencode(name) for name in self.names),
            "sizes of files": digest_of(str(self._stat(name, "st_size")).encode() for name in sized),
        }

    def _stat(self, name: str, field: str) -> int | str:
        """See `_stat_field`."""
        return _stat_field(self.folder / name, field, self.skip_broken)

    def _content(self, index: int) -> bytes:
        """The bytes of a file, for the identity; none where it is skipped."""
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            if not self.skip_broken:
                raise _unreadable(self.path(index), error) from error
            return b""

    def version(self) -> str:
        files = (self.folder / name for name in self.names)
        return version_of(files, self.skip_broken) + self.decoding.suffix()


class FolderSource(FileSource):
    """A folder in ImageNet layout: one sub-folder per class, classes and files in alphabetical order.

    Hidden names are left out. Raises UserError for a missing folder or a class folder without images, and ImageError
    for a file that is not an image; with `skip_broken` such files are left out and counted.
    """

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None:
        folder = Path(root)
        if not is_folder(root):
            raise UserError(f"{key}={printable(root)!r} is not a folder; give one with a sub-folder per class")
        self.name = printable(folder)
        self.folder = folder
        self.skip_broken = skip_broken

        # The classes. A link that leads nowhere may have been one, and without it all labels would shift.
        top = list_folder(folder)
        if top.broken:
            raise UserError(
                f"{printable(folder / top.broken[0])} is a link that leads nowhere; mount its target, or remove it"
            )
        if not top.folders:
            raise UserError(
                f"{key}={printable(root)!r} has no class folders (expected one sub-folder of images per class)"
                f"{flat_hint(len(top.images))}"
            )
        self.class_names = [printable(name) for name in top.folders]

        if top.images:
            logger.warning("%s: left out %d images that lie beside the class folders", self.name, len(top.images))

        # The images of each class.
        labels: list[int] = []
        total = Listing(num_hidden=top.num_hidden, num_links=top.num_links, states=top.states)
        num_nested = 0
        for label, class_name in enumerate(top.folders):
            listing = list_folder(folder / class_name)
            _check_class(folder / class_name, listing, key, skip_broken)
            labels += [label] * len(listing.images)
            num_nested += len(listing.folders)
            total.add(listing, class_name)
        total.log(folder, num_nested)
        self.names = total.images
        self.states = total.states
        self.num_hidden = total.num_hidden
        self.labels = np.array(labels, dtype=np.int64)

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


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder. Raises ImageError where that cannot be seen."""
    try:
        return bool(str(path)) and Path(path).is_dir()
    except OSError as error:
        raise _unreadable(Path(path), error) from error


class LooseSource(FileSource):
    """All image files under a folder, at any depth, with one label; other files are counted and ignored.

    Hidden names are left out, symbolic links are followed. Raises UserError if the folder is missing or holds no image
    file, and ImageError for links that lead nowhere; with `skip_broken` these are left out and counted.
    """

    has_classes = False

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None:
        folder = Path(root)
        if not is_folder(root):
            raise UserError(f"{key}={printable(root)!r} is not a folder of images")
        self.name = printable(folder)
        self.folder = folder
        self.skip_broken = skip_broken
        self.class_names = ["all"]

        listing = list_below(folder)
        if listing.broken and not skip_broken:
            broken = printable(folder / min(listing.broken, key=by_parts))
            raise ImageError(f"{broken} is a link that leads nowhere, or a pipe; {_remedy(key)}")
        self.names = listing.images
        self.states = listing.states
        if not self.names:
            raise UserError(f"{key}={printable(root)!r} holds no image files ({ACCEPTED})")
        if listing.others:
            logger.info("%s: %d images; ignored %d others", self.name, len(self), len(listing.others))
            listing.others = []
        listing.log(folder)
        self.num_hidden = listing.num_hidden
        self.labels = np.zeros(len(self), dtype=np.int64)

    def take(self, paths: Sequence[Path]) -> None:
        """Keeps only these files."""
        self.folder = self.folder.resolve()
        self.names = sorted((str(path.relative_to(self.folder)) for path in paths), key=by_parts)
        self.labels = np.zeros(len(self), dtype=np.int64)

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """Any path: this kind is asked last, and its error says what is missing."""
        return True
