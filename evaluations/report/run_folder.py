"""What the report reads from the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evaluations.results import read_result
from evaluations.run_layout import RunLayout


def results_of(path: Path) -> dict[str, dict[str, Any]]:
    """Reads all results of a run: {name: result}.

    Those of its AR probing are named `ar_probe/<name>`.
    """
    layout = RunLayout(path)
    evaluations = sorted(layout.evaluations.glob("*.json"))
    files = {file.stem: file for file in evaluations if ".partial" not in file.name}
    files |= {file.parent.name: file for file in sorted(path.glob("linear_probe*/result.json"))}
    results = {name: read_result(file) for name, file in files.items()}

    if layout.ar_probe.is_dir():
        inner = results_of(layout.ar_probe)
        results |= {f"{layout.ar_probe.name}/{name}": result for name, result in inner.items()}
    return results


class RunFolder:
    """The folder of a run, with its results read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = RunLayout(path)
        self.results = results_of(path)

    def arrays(self, name: str, needed: str) -> dict[str, np.ndarray]:
        """The arrays beside the result `name`; empty if there are none, or none called `needed`."""
        path = self.layout.arrays(name)
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored) if needed in stored.files else {}
