"""How a folder of pictures is to be read: as classes, one per sub-folder, or as one set without classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.data.folders import FolderSource, LooseSource
from engine.data.images import printable
from engine.data.listing import Listing, list_below, list_folder
from engine.data.sources import SOURCES, kind_of
from engine.messages import UserError

CLASSES, FLAT = "classes", "flat"
NO_CLASS = "all"  # what the images of a flat set are called
KINDS = {CLASSES: FolderSource, FLAT: LooseSource}
SHOWN = 3  # names in a reason


@dataclass(frozen=True)
class FolderLayout:
    """The images of a folder as one of the kinds of source reads them, and what it leaves out."""

    folder: Path
    layout: str  # CLASSES or FLAT
    reason: str  # why that one
    images: list[str]  # relative to the folder, in the order of the source
    left_out: list[str]  # images that this layout does not see
    listing: Listing  # of everything below the folder

    @property
    def data_name(self) -> str:
        """The value of `data.name` that reads the folder so."""
        return next(name for name, kind in SOURCES.items() if kind is KINDS[self.layout])

    def class_of(self, name: str) -> str:
        """The class of an image."""
        return printable(name.partition("/")[0]) if self.layout == CLASSES else NO_CLASS


def look_at_layout(folder: Path, wanted: str | None = None) -> FolderLayout:
    """Lists a folder, and picks the layout that fits: classes only where nothing is lost by it.

    Raises UserError for what is no folder of image files, and where the layout `wanted` cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(folder)} is not a folder of pictures")
    listing = list_below(folder)
    if not listing.images:
        kind = kind_of(folder)
        is_other = SOURCES[kind] not in KINDS.values()
        hint = f"; it holds images of data.name={kind} (see docs/data.md)" if is_other else ""
        raise UserError(f"{printable(folder)} holds no image files{hint}")

    # Flat, where that is wanted or classes are in doubt.
    class_folders = list_folder(folder).folders
    doubts = class_doubts(class_folders, listing.images)
    layout = wanted or (FLAT if doubts else CLASSES)
    if layout == FLAT:
        reason = "no classes: all images have one label" if wanted else f"no classes: {'; '.join(doubts)}"
        return FolderLayout(folder, FLAT, reason, listing.images, [], listing)

    # Classes, of which none may be empty.
    in_classes = [name for name in listing.images if name.count("/") == 1]
    empty = _without_images(class_folders, listing.images)
    if empty or not class_folders:
        reason = f"{_shown(empty)} holds no image itself; fill or remove it" if empty else "it has no sub-folders"
        raise UserError(f"{printable(folder)} cannot be read as classes: {reason}, or use --layout flat")
    in_set = set(in_classes)
    left_out = [name for name in listing.images if name not in in_set]
    reason = f"{len(class_folders):,} classes: one per sub-folder"
    return FolderLayout(folder, CLASSES, reason, in_classes, left_out, listing)


def class_doubts(class_folders: list[str], images: list[str]) -> list[str]:
    """Why the sub-folders of a folder are not classes, or not all that counts; empty where they are."""
    if not class_folders:
        return ["the images lie in one folder"]
    beside = sum("/" not in name for name in images)
    nested = sum(name.count("/") > 1 for name in images)
    empty = _without_images(class_folders, images)

    doubts = []
    if beside:
        doubts.append(f"{_images(beside)} beside the sub-folders")
    if nested:
        doubts.append(f"{_images(nested)} in folders of folders")
    if empty:
        doubts.append(f"the sub-folder {_shown(empty)} holds no image itself")
    if len(class_folders) == 1 and not doubts:
        doubts.append("a single sub-folder is no choice of classes")
    return doubts


def _without_images(class_folders: list[str], images: list[str]) -> list[str]:
    """The sub-folders that hold no image themselves, in alphabetical order."""
    return sorted(set(class_folders) - {name.partition("/")[0] for name in images if name.count("/") == 1})


def _images(count: int) -> str:
    """The beginning of a sentence about some images."""
    return "1 image lies" if count == 1 else f"{count:,} images lie"


def _shown(names: list[str]) -> str:
    """The first names of a list."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(printable(name) for name in names[:SHOWN]) + more
