"""What stands beside every number: how it was made. Two numbers may be compared only where these facts agree."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.checkpoint import write_atomic

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "torch-fidelity", "lpips")


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_result(path: Path, metrics: dict[str, Any], protocol: dict[str, Any]) -> None:
    """Writes `{metrics, protocol, libraries}` as JSON, in one piece: a result file is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"metrics": metrics, "protocol": protocol, "libraries": library_versions()}
    write_atomic(path, json.dumps(result, indent=1))


def read_result(path: Path) -> dict[str, Any]:
    """A result that `write_result` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
