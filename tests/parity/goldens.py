"""Reads golden folders. The set in tests/goldens is the default; PARITY_GOLDENS=<folder> names another of the same layout.

Names, sizes and cases come from the files; nothing here is bound to one set.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(os.environ.get("PARITY_GOLDENS", Path(__file__).parents[1] / "goldens"))


def cases(folder: str, prefix: str) -> list[str]:
    """Names of the cases under `folder` (such as gigatok/tiny) that begin with `prefix`."""
    return sorted(p.stem for p in (ROOT / folder).glob(f"{prefix}*.json"))


def meta(folder: str, case: str) -> dict:
    return json.loads((ROOT / folder / f"{case}.json").read_text(encoding="utf-8"))


def tensors(folder: str, case: str, kind: str = "io") -> dict[str, torch.Tensor]:
    """Tensors of a case; float8 weights become the float32 values they stand for."""
    loaded = load_file(ROOT / folder / f"{case}.{kind}.safetensors")
    return {k: v.float() if v.dtype == torch.float8_e4m3fn else v for k, v in loaded.items()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 2e-4) -> float:
    """|actual - expected| <= tolerance * max(1, max |expected|); returns and prints the largest difference."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs().max().item()
    limit = tolerance * max(1.0, expected.abs().max().item())
    print(f"{what}: max |difference| {difference:.2e} (limit {limit:.2e})")
    assert difference <= limit, f"{what}: {difference:.3e} > {limit:.3e}"
    return difference
