"""Where commands write, by one rule: nothing that is there is lost or mixed with something else.

    folder   one that this program filled with the same settings is continued: its files are written again. Any other
             folder that is not empty is refused, with the name of a free one.
    file     one that this program wrote with the same settings is replaced. Any other file is refused likewise.

`written.json` in a folder says with which settings it was filled, and which of its pictures are the images of the set,
as opposed to grids and originals. Readers of image folders take those (`listed_images`). It says so of a finished set
only: from the first picture of a call to the last, the set is unfinished. Nothing is ever deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.atomic_file import write_atomic
from engine.facts import changed_facts
from engine.json_text import as_read_back, to_json
from engine.messages import UserError, logger
from engine.world import World

MANIFEST = "written.json"
NOT_FOR_METRICS = "not_for_metrics"  # the setting of a folder whose pictures are to look at only; its value says why
MARK = "visual-tokenizers: set of images"  # the entry `format` of our manifests, as opposed to files of others
MAX_DIFFERENCES = 500  # characters of differing settings that a message shows


# ------------------------------------------------------------------------------------------------ names
def free_name(path: Path) -> Path:
    """The first of name-2, name-3, ... beside `path` that does not exist."""
    if not path.name:  # `.` and an empty path
        path = path.absolute()
    if not path.name:  # the root
        path = path / "new"
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    number = 2
    while (candidate := path.with_name(f"{stem}-{number}{suffix}")).exists():
        number += 1
    return candidate


def refuse(path: Path, flag: str, reason: str) -> UserError:
    """The error for an output that is there already; it suggests a free name."""
    return UserError(f"{flag} {path} {reason}; nothing is overwritten: give another one, such as {free_name(path)}")


def require_suffix(path: Path, suffix: str, flag: str) -> None:
    """Raises UserError unless `path` is the name of a file that ends in `suffix`, such as .npz."""
    if path.suffix != suffix or path.is_dir():
        raise UserError(f"{flag} {path} must be the name of a {suffix} file")


def require_absent(path: Path, flag: str) -> None:
    """Raises UserError where a file or folder is there already."""
    if path.exists():
        raise refuse(path, flag, "exists already")


def changed_settings(stored: Mapping[str, Any], settings: Mapping[str, Any], free: Sequence[str] = ()) -> str:
    """What differs between stored settings and those of now, as a short text; empty if nothing does.

    `free` are dotted keys that may differ.
    """
    as_stored = as_read_back(settings)
    changed = [text for key, text in changed_facts(stored, as_stored).items() if key not in free]
    return "; ".join(changed)[:MAX_DIFFERENCES]


# ------------------------------------------------------------------------------------------------ folders
class OutputFolder:
    """A folder that this command fills. All ranks call the constructor and `finish`, which are collectives.

    `images` are the paths inside the folder that will be the images of the set, as far as they are known before. Until
    `finish` the set is unfinished, also where the folder is continued: its files are about to be written again.

    Raises UserError where the folder holds something else, before anything is written.
    """

    def __init__(
        self, path: Path, flag: str, settings: Mapping[str, Any], world: World, images: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.world = world
        self.settings = as_read_back(settings)
        self.is_continued = _require_usable(path, flag, self.settings)
        world.barrier()  # no rank writes before all have looked
        if world.is_main:
            if self.is_continued:
                logger.info("%s holds the same settings: continued", path)
            path.mkdir(parents=True, exist_ok=True)
            self._write(images, is_finished=False)
        world.barrier()  # no rank writes before the manifest says that the set is unfinished

    def finish(self, images: Sequence[str]) -> None:
        """Notes which files, by their paths inside the folder, are the images of the set."""
        self.world.barrier()
        if self.world.is_main:
            self._write(images, is_finished=True)

    def _write(self, images: Sequence[str], is_finished: bool) -> None:
        content = {"format": MARK, "settings": self.settings, "finished": is_finished, "images": sorted(images)}
        write_atomic(self.path / MANIFEST, to_json(content, indent=1))


def _require_usable(path: Path, flag: str, settings: Mapping[str, Any]) -> bool:
    """Whether the folder is one of the same settings. Raises UserError where it holds anything else."""
    if path.exists() and not path.is_dir():
        raise refuse(path, flag, "is a file")
    if not path.is_dir() or all(entry.name.startswith(".") for entry in path.iterdir()):
        return False
    stored = _read_manifest(path)
    if stored is None:
        raise refuse(path, flag, f"is not empty, and no {MANIFEST} says that this program filled it")
    changed = changed_settings(stored["settings"], settings)
    if changed:
        raise refuse(path, flag, f"was filled with other settings ({changed})")
    return True


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """What this program wrote into a folder; None where it did not: a file of that name without our mark is another's.

    Raises UserError for a damaged manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        if MARK not in text:
            return None
        content = json.loads(text)
        if not {"settings", "finished", "images"} <= content.keys():
            raise ValueError("it lacks settings, finished or images")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return content


def listed_images(folder: Path) -> list[Path] | None:
    """The images of the set that this program wrote into a folder or one above it; None where it did not.

    Of a folder above, those inside `folder` count; where it lists none of them, `folder` is no part of its set. Raises
    UserError for an unfinished set, for one that is not for metrics, and for images that are gone.
    """
    folder = folder.resolve()
    for owner in (folder, *folder.parents):
        manifest = _read_manifest(owner)
        if manifest is None:
            continue

        # The part of the set that lies in the folder.
        paths = [owner / name for name in manifest["images"]]
        paths = [path for path in paths if path.is_relative_to(folder)]
        if not paths and (owner != folder or manifest["finished"]):
            continue

        # A set that is whole and for measuring, and still there.
        if not manifest["finished"]:
            raise UserError(f"{owner} holds an unfinished set of images; run the command that fills it again")
        if NOT_FOR_METRICS in manifest["settings"]:
            raise UserError(
                f"{owner} holds pictures to look at, not to measure: {manifest['settings'][NOT_FOR_METRICS]}"
            )
        gone = [path for path in paths if not path.is_file()]
        if gone:
            raise UserError(f"{gone[0]} is gone: {owner / MANIFEST} lists it among {len(paths)} images")
        return paths
    return None
