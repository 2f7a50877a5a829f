"""The manifest of a checkpoint folder: its files, with sizes and SHA-256, and what is damaged.

`manifest.json` is written last. A folder without a valid one is no checkpoint; `find_damage` compares every file with
it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.data.order import FIRST_ORDER
from engine.json_text import to_json
from engine.messages import UserError

ORDER_KEY = "sample_order"  # of a manifest; older ones lack it
STEP_NAME = re.compile(r"step_\d{8,}")  # name of a checkpoint folder


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message names the file and the cause."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(facts: Mapping[str, Any]) -> str:
    """SHA-256 of facts, whatever their order: a manifest carries its own, and caches are named by theirs."""
    return hashlib.sha256(to_json(facts, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest of a checkpoint folder; returns None where it is missing, unreadable or altered."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("step"), int):
        return None
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_description(facts) for facts in files.values()):
        return None

    # Manifests of older versions carry no digest.
    digest = manifest.pop("digest", None)
    if digest is not None and digest != json_digest(manifest):
        return None
    return manifest


def _is_description(facts: Any) -> bool:
    """Whether an entry of a manifest says what a file must be."""
    return isinstance(facts, dict) and isinstance(facts.get("size"), int) and isinstance(facts.get("sha256"), str)


def find_damage(folder: Path) -> str | None:
    """Compares every file of a checkpoint folder with its manifest; returns what is wrong, or None."""
    manifest = read_manifest(folder)
    if manifest is None:
        return "manifest.json is missing or unreadable"
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if file_sha256(path) != expected["sha256"]:
            return f"the hash of {name} is not that of the manifest"
    return None


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run that have a manifest, oldest first."""
    folders = [
        folder
        for folder in (run_dir / "checkpoints").glob("step_*")
        if STEP_NAME.fullmatch(folder.name) and read_manifest(folder) is not None
    ]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step_")))


def phase_folders(run_dir: Path) -> list[Path]:
    """The folders of the phases of a run that has any, in order."""
    return sorted(run_dir.glob("phase_*"), key=lambda folder: (len(folder.name), folder.name))


def record_folders(run_dir: Path) -> list[Path]:
    """The folders that hold the records of a run, in order: those of its phases if it has any, else its own."""
    return phase_folders(run_dir) or [run_dir]


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Finds the newest checkpoint of a run, of one in phases that of the last phase which has any; else None."""
    checkpoints = [c for folder in (run_dir, *phase_folders(run_dir)) for c in checkpoint_folders(folder)]
    return checkpoints[-1] if checkpoints else None


def order_version_of(manifest: Mapping[str, Any]) -> int:
    """The version of the order of samples (`engine.data.order`) in which the run of a checkpoint reads its data."""
    return manifest.get(ORDER_KEY, FIRST_ORDER)


def order_version_of_run(run_dir: Path, new: int) -> int:
    """That of the newest checkpoint of a run; `new` where it has none."""
    folder = newest_checkpoint(run_dir)
    return new if folder is None else order_version_of(read_manifest(folder))
