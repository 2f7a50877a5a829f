"""The index of a folder of images: its names and labels in one mapped file, so that a start does not list the folder.

`python -m engine.index_images` builds it; the next starts find and use it. It is fresh as long as no name was added to
one of the folders, or taken from one: that changes the modification time of the folder. A stale index is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.index_file import Index, index_path, is_there
from engine.data.name_table import NameTable


@dataclass(frozen=True)
class FolderIndex:
    """What a listing of a folder found."""

    file: Path
    names: NameTable  # of the images, relative to the folder
    labels: np.ndarray  # integers (N,)
    class_names: list[str]  # by label
    num_hidden: int  # names that were left out
    digest: str  # of the names, as in `FileSource.contents`
    folders: NameTable  # that were listed, relative to the folder
    folder_times: np.ndarray  # int64: when each of them was modified, in nanoseconds

    @staticmethod
    def path(kind: str, folder: Path, skip_broken: bool) -> Path:
        """Where the index of a folder lies."""
        return index_path("folder", kind, str(folder.absolute()), skip_broken)

    @classmethod
    def find(cls, file: Path) -> FolderIndex | None:
        """Opens an index file; None where there is none. Raises IndexDamaged."""
        if not is_there(file):
            return None
        index = Index.open(file)
        columns, facts = index.columns, index.facts
        return cls(
            file,
            names=NameTable(columns["names"], columns["name_ends"]),
            labels=columns["labels"],
            class_names=facts["class_names"],
            num_hidden=facts["num_hidden"],
            digest=facts["digest"],
            folders=NameTable(columns["folders"], columns["folder_ends"]),
            folder_times=columns["folder_times"],
        )

    def save(self, name: str) -> None:
        """Writes the file; `name` says for people of what."""
        facts = {"of": name, "class_names": self.class_names, "num_hidden": self.num_hidden, "digest": self.digest}
        columns = {
            "names": self.names.content,
            "name_ends": self.names.ends,
            "labels": self.labels.astype(np.int32),
            "folders": self.folders.content,
            "folder_ends": self.folders.ends,
            "folder_times": self.folder_times,
        }
        Index(facts, columns).save(self.file)

    def changed_folder(self, root: Path) -> Path | None:
        """The first folder that is gone or was modified since it was listed; None where the index is fresh."""
        for below, time in zip(self.folders, self.folder_times.tolist(), strict=True):
            folder = root / below
            try:
                modified = folder.stat().st_mtime_ns
            except OSError:
                return folder
            if modified != time:
                return folder
        return None
