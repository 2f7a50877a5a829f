"""Seeded weights for Inception, which take the place of the published file in tests."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import goldens
import numpy as np
import torch

from engine.assets import AssetsConfig
from evaluations.metrics.extractors import EXTRACTORS

FILE_NAME = "weights-inception-2015-12-05-6726825d.pth"  # of the published file


@functools.cache
def seeded_inception() -> ModuleType:
    """The code that makes weights and images; ours, whatever folder PARITY_GOLDENS names."""
    path = goldens.OWN / "adm" / "seeded_inception.py"
    spec = importlib.util.spec_from_file_location("seeded_inception", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_seeded_weights(folder: Path, seed: int, statistics_file: Path) -> Path:
    """Writes the weights under the name of the published file; returns its path."""
    network = EXTRACTORS["inception"](AssetsConfig(pretrained_dir="", random_stand_in=True)).network.network
    with np.load(statistics_file, allow_pickle=False) as statistics:
        state = seeded_inception().seeded_state_dict(network.state_dict(), seed, statistics)
    torch.save(state, folder / FILE_NAME)
    return folder / FILE_NAME
