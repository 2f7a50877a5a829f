"""Where a publication goes: a folder, or a repository of the hub. What is there is replaced only where asked for."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from engine.atomic_file import atomic_file
from engine.hub import PREFIX, is_address
from engine.hub_upload import look_up, require_free, upload
from engine.messages import UserError

FOLDER_PREFIX = "folder:"
# Files that a loader would prefer to those of a publication, or believe more.
OVERRIDING = ("ema.safetensors", "manifest.json")


class Destination(Protocol):
    """A place for the files of a publication."""

    address: str  # what to type to load it from there

    def text(self) -> str:
        """The place, for people."""

    def require_free(self, names: Collection[str], replace: bool) -> None:
        """Raises UserError where a file is there, unless it may be replaced, and where one would hide the new ones."""

    def write(self, files: Mapping[str, Path], title: str) -> str:
        """Writes {path in the publication: file}, and returns what to type to load exactly these files."""


def destination_of(text: str) -> Destination:
    """Reads `hf-hub:organization/name`, `folder:PATH` or PATH. Raises UserError where the hub cannot be asked."""
    return HubDestination(text) if is_address(text) else FolderDestination(Path(text.removeprefix(FOLDER_PREFIX)))


def _hiding(names: Collection[str]) -> list[str]:
    """The files that would be loaded in the place of new ones of these names."""
    folders = {name.rpartition("/")[0] for name in names}
    return sorted(f"{folder}/{name}".lstrip("/") for folder in folders for name in OVERRIDING)


def _require_not_hidden(there: Collection[str], names: Collection[str], place: str) -> None:
    """Raises UserError where a file beside the new ones would be loaded in their place."""
    present = [name for name in _hiding(names) if name in there]
    if present:
        raise UserError(f"{place} holds {present[0]}, which would be read in the place of what is published; remove it")


class FolderDestination:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = "FOLDER"  # on a card, which is read elsewhere

    def text(self) -> str:
        return str(self.folder)

    def require_free(self, names: Collection[str], replace: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--to {self.folder} is a file; the name of a folder is needed")
        there = {name for name in (*names, *_hiding(names)) if (self.folder / name).is_file()}
        _require_not_hidden(there, names, f"--to {self.folder}")
        taken = sorted(there & set(names))
        if taken and not replace:
            raise UserError(f"--to {self.folder} has {', '.join(taken[:3])} already; --replace replaces files")

    def write(self, files: Mapping[str, Path], title: str) -> str:
        for name, file in files.items():
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(target) as temporary:
                shutil.copyfile(file, temporary)
        return str(self.folder)


class HubDestination:
    """A repository of the hub, as it is when this is made."""

    def __init__(self, text: str) -> None:
        self.repository = look_up(text)
        self.address = f"{PREFIX}{self.repository.name}"

    def text(self) -> str:
        return self.repository.text()

    def require_free(self, names: Collection[str], replace: bool) -> None:
        _require_not_hidden(self.repository.files, names, self.address)
        require_free(self.repository, names, replace)

    def write(self, files: Mapping[str, Path], title: str) -> str:
        return upload(self.repository, files, f"Publish {title}").text()
