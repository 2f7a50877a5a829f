"""What the report reads from the folder of a run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from engine.checkpoint.manifest import phase_folders
from engine.config import read_yaml
from evaluations.results import read_result
from evaluations.run_layout import RunLayout


def results_of(path: Path) -> dict[str, dict[str, Any]]:
    """Reads all results of a run: {name: result}.

    Those of its AR probing are named `ar_probe/<name>`.
    """
    layout = RunLayout(path)
    evaluations = sorted(layout.evaluations.glob("*.json"))
    # A killed evaluation may leave the hidden file that was to become its result.
    files = {file.stem: file for file in evaluations if ".partial" not in file.name and not file.name.startswith(".")}
    files |= {file.parent.name: file for file in sorted(path.glob("linear_probe*/result.json"))}
    results = {name: read_result(file) for name, file in files.items()}

    if layout.ar_probe.is_dir():
        inner = results_of(layout.ar_probe)
        results |= {f"{layout.ar_probe.name}/{name}": result for name, result in inner.items()}
    return results


def is_training(path: Path) -> bool:
    """Whether a folder is that of one training run, which may have phases."""
    return any((folder / "metrics.jsonl").is_file() for folder in (path, *phase_folders(path)))


def config_file_of(path: Path) -> Path:
    """The config file of a training, that of its first phase if it has any; it need not exist."""
    return (*phase_folders(path), path)[0] / "config.yaml"


def config_of(path: Path) -> DictConfig:
    """The config of a training, that of its first phase if it has any; empty where there is none."""
    file = config_file_of(path)
    return read_yaml(file) if file.is_file() else OmegaConf.create()


class RunFolder:
    """The folder of a run, with its results read once: of a pipeline, or of a single training (`is_training`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = RunLayout(path)
        self.is_training = is_training(path)
        self.results = results_of(path)
        if (path / "result.json").is_file():  # of a linear probe
            self.results[path.name] = read_result(path / "result.json")
        self._arrays: dict[Path, dict[str, np.ndarray]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        layout = self.layout
        networks = (layout.tokenizer, layout.generator, layout.generator_probe, layout.tokenizer_probe)
        return not (self.results or self.is_training or any(is_training(folder) for folder in networks))

    @cached_property
    def config(self) -> DictConfig:
        """The config of a single training (`config_of`)."""
        return config_of(self.path)

    def arrays(self, name: str, needed: str) -> dict[str, np.ndarray]:
        """The arrays beside the result `name`, read once; empty if there are none, or none called `needed`."""
        path = self.layout.arrays(name)
        if not path.is_file():
            return {}
        if path not in self._arrays:
            with np.load(path, allow_pickle=False) as stored:
                self._arrays[path] = dict(stored)
        arrays = self._arrays[path]
        return arrays if needed in arrays else {}


def runs_in(path: Path) -> list[RunFolder]:
    """The runs of a folder: itself if it is one, else those right below it, in alphabetical order."""
    run = RunFolder(path)
    if not run.is_empty:
        return [run]
    below = (RunFolder(folder) for folder in sorted(path.iterdir()) if folder.is_dir())
    return [run for run in below if not run.is_empty]
