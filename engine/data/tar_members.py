"""What one tar file holds: its images, with the labels and folders that it gives them.

The parts of a sample share a name, as in WebDataset: `0001.jpg 0001.cls`, or `0001.jpg 0001.json` with the label under
`cls` or `label`. Hard and symbolic links stand for the file that they lead to; hidden names are left out.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from engine.data.images import IMAGE_SUFFIXES, ImageError, printable
from engine.data.listing import is_hidden, is_image_name
from engine.messages import UserError, logger

LABEL_SUFFIX = ".cls"
JSON_SUFFIX = ".json"
JSON_KEYS = ("cls", "label")  # under which a .json file may hold the label
MAX_LABEL_BYTES = 32
MAX_JSON_BYTES = 2**20
MAX_CLASSES = 10**6
NO_LABEL = -1

SplitName = Callable[[str], tuple[str | None, str | None]]  # member -> (name of its sample, suffix without the dot)


class Place(NamedTuple):
    """Where a file lies in a tar file."""

    start: int  # first byte
    size: int  # bytes


@dataclass(slots=True)
class Sample:
    """One image, with what its tar file says of it."""

    name: str
    image: Place | None = None  # None = no image yet
    label: int = NO_LABEL
    notes: Place | None = None  # its .json file
    folder: str = ""  # inside the tar file


@dataclass
class TarListing:
    """The samples of a tar file that have an image, in its order, and what is to be said of the others."""

    samples: list[Sample] = field(default_factory=list)
    num_hidden: int = 0
    num_links: int = 0  # links to files, which were followed
    num_misnamed: int = 0  # images whose name has a second dot
    dead_links: list[str] = field(default_factory=list)  # with their targets
    without_image: list[str] = field(default_factory=list)  # names of samples
    odd_label: str = ""  # the first label of a .json file that is no number


def list_tar(path: Path, split_name: SplitName, skip_broken: bool) -> TarListing:
    """Lists a tar file without compression.

    Raises UserError if it is torn, holds two images of one name or a label that is none, and ImageError for links that
    lead nowhere and for labels without image, unless those are skipped.
    """
    listing = TarListing()
    try:
        with tarfile.open(path, "r:") as tar:
            members = _members(tar, path, listing)
            check_end(tar)
        with path.open("rb") as file:
            samples = _samples(members, file, path, split_name, listing)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is not a readable tar file without compression ({error}); fetch it again") from error

    listing.samples = [sample for sample in samples if sample.image is not None]
    listing.without_image = [sample.name for sample in samples if sample.image is None and sample.label != NO_LABEL]
    _report(listing, printable(path), skip_broken)
    return listing


def _report(listing: TarListing, where: str, skip_broken: bool) -> None:
    """Says what was left out; raises ImageError for what is left out only where broken files are skipped."""
    # What ends the opening.
    if listing.dead_links and not skip_broken:
        raise ImageError(
            f"{where}: {listing.dead_links[0]}, which the tar file does not hold; pack the files themselves "
            "(tar --dereference), or set data.skip_broken=true"
        )
    if listing.without_image and not skip_broken:
        raise ImageError(
            f"{where}: sample {listing.without_image[0]} has a label but no image; fix the shard or set "
            "data.skip_broken=true"
        )

    # What is left out.
    left_out = {
        "labels without image": len(listing.without_image),
        "images named a.b.png": listing.num_misnamed,
        "links that lead nowhere": len(listing.dead_links),
    }
    told = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    if told:
        logger.warning("%s: left out %s", where, told)


# ------------------------------------------------------------------------------------------------ members
def _members(tar: tarfile.TarFile, path: Path, listing: TarListing) -> list[tuple[str, Place | None]]:
    """(name, place) of all files and links, in the order of the tar file; None for a link that leads nowhere."""
    names: list[str] = []
    files: dict[str, Place] = {}
    targets: dict[str, str] = {}
    places: list[Place | None] = []  # of `names`; None = a link
    for member in tar:
        if _is_hidden_member(member.name):
            listing.num_hidden += 1
            continue
        key = posixpath.normpath(member.name)
        if member.issparse():
            raise UserError(f"{path}: {member.name} is stored as a sparse file, which cannot be read; pack it plainly")
        if member.isreg():
            files[key] = Place(member.offset_data, member.size)
            places.append(files[key])
        elif member.islnk() or member.issym():
            folder = "" if member.islnk() else posixpath.dirname(member.name)
            targets[key] = posixpath.normpath(posixpath.join(folder, member.linkname))
            places.append(None)
        else:
            continue
        names.append(member.name)

    # Links, now that all that they may lead to is known.
    followed = [
        place if place is not None else _follow(posixpath.normpath(name), targets, files)
        for name, place in zip(names, places, strict=True)
    ]
    for name, place, end in zip(names, places, followed, strict=True):
        if place is None and end is not None:
            listing.num_links += 1
        elif end is None and _is_part(name):
            listing.dead_links.append(f"{name} is a link to {targets[posixpath.normpath(name)]}")
    return list(zip(names, followed, strict=True))


def _follow(name: str, targets: dict[str, str], files: dict[str, Place]) -> Place | None:
    """The file that a link leads to, over other links; None where there is none, and for links in a circle."""
    passed: set[str] = set()
    while name in targets and name not in files and name not in passed:
        passed.add(name)
        name = targets[name]
    return files.get(name)


def _is_hidden_member(name: str) -> bool:
    """Whether a file of a tar, or a folder that it lies in, is hidden. `tar cf x.tar .` lets names begin with "./"."""
    return any(is_hidden(part) for part in PurePosixPath(name).parts if part != "..")


def _is_part(name: str) -> bool:
    """Whether a member could be a part of a sample."""
    return is_image_name(name) or name.endswith((LABEL_SUFFIX, JSON_SUFFIX))


def read_member(path: Path, start: int, size: int) -> bytes:
    """The content of a file in a tar file: `size` bytes from byte `start` on."""
    with path.open("rb") as file:
        file.seek(int(start))
        return file.read(int(size))


def check_end(tar: tarfile.TarFile) -> None:
    """Raises ReadError unless a block of zeros ends the file.

    tarfile itself takes a file that was cut between two members for a whole one.
    """
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")


# ------------------------------------------------------------------------------------------------ samples
def _samples(
    members: list[tuple[str, Place | None]], file: Any, path: Path, split_name: SplitName, listing: TarListing
) -> list[Sample]:
    """The samples whose parts the members are.

    WebDataset's rule is that the name of a sample ends at its first dot: the rest of `a.b.png` is no image suffix.
    """
    samples: dict[str, Sample] = {}
    for member, place in members:
        if place is None:
            continue
        name, suffix = split_name(member)
        suffix = f".{(suffix or '').lower()}"
        if suffix not in {LABEL_SUFFIX, JSON_SUFFIX, *IMAGE_SUFFIXES}:
            listing.num_misnamed += is_image_name(member)
            continue

        sample = samples.setdefault(name, Sample(name))
        if suffix == LABEL_SUFFIX:
            sample.label = _label_of_text(file, place, f"{path}: {member}")
        elif suffix == JSON_SUFFIX:
            sample.notes = place
        elif sample.image is not None:
            raise UserError(f"{path}: sample {name} has two images; a sample is one image and its label")
        else:
            sample.image = place
            sample.folder = printable(posixpath.dirname(posixpath.normpath(member)))

    for sample in samples.values():
        if sample.label == NO_LABEL and sample.notes is not None:
            sample.label = _label_of_json(file, sample, path, listing)
    return list(samples.values())


def _read(file: Any, place: Place, limit: int) -> bytes:
    file.seek(place.start)
    return file.read(min(place.size, limit))


def _label_of_text(file: Any, place: Place, where: str) -> int:
    """Reads the label in a .cls file. Raises UserError if it is none."""
    text = _read(file, place, MAX_LABEL_BYTES)
    if not text.strip().isdigit() or len(text) == MAX_LABEL_BYTES or int(text) >= MAX_CLASSES:
        raise UserError(f"{where} holds {text!r}; a label is from 0 to {MAX_CLASSES - 1}")
    return int(text)


def _label_of_json(file: Any, sample: Sample, path: Path, listing: TarListing) -> int:
    """Reads the label in a .json file, which may hold other things only. Raises UserError for a number that is none."""
    try:
        notes = json.loads(_read(file, sample.notes, MAX_JSON_BYTES))
    except (ValueError, RecursionError):
        return NO_LABEL
    if not isinstance(notes, dict):
        return NO_LABEL

    # The first key that holds a number.
    for key in JSON_KEYS:
        label = notes.get(key)
        if label is None:
            continue
        if isinstance(label, bool) or not isinstance(label, int):
            listing.odd_label = listing.odd_label or f"{sample.name}.json has {key}={label!r}"[:200]
            continue
        if not 0 <= label < MAX_CLASSES:
            raise UserError(f"{path}: {sample.name}.json has {key}={label}; a label is from 0 to {MAX_CLASSES - 1}")
        return label
    return NO_LABEL
