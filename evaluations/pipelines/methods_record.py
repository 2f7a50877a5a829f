"""The numbers of the runs behind a page of methods, in a file of their own.

    {"gigatok": {"0": {"commit": "97358e9...", "numbers": {"psnr": 21.72, ...}}, "1": ...}, "ema": ...}

The runs of several machines, or of folders that are gone, fill one page that way. A commit tells with which code a run
was trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.atomic_file import write_atomic
from engine.json_text import to_json
from engine.messages import UserError

SUFFIX = ".json"  # in place of that of the page


@dataclass(frozen=True)
class RunNumbers:
    """What is known of a finished run: its numbers by name, and the commit of the code that trained its generator."""

    numbers: Mapping[str, float]
    commit: str


Recorded = dict[str, dict[int, RunNumbers]]  # {method: {seed: numbers}}


def record_of(page: Path) -> Path:
    """The file of the numbers of a page."""
    return page.with_suffix(SUFFIX)


def read_record(path: Path) -> Recorded:
    """The runs in a file; none where it does not exist. Raises UserError if it is something else."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {method: {int(seed): _run(entry) for seed, entry in runs.items()} for method, runs in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no record of runs ({error!r}): it is written beside the page, {{method: {{seed: "
            '{"commit": ..., "numbers": {...}}}}; move it away, or give another --page'
        ) from error


def write_record(path: Path, recorded: Recorded) -> None:
    """Writes the runs, atomically."""
    content = {
        method: {str(seed): {"commit": run.commit, "numbers": dict(run.numbers)} for seed, run in sorted(runs.items())}
        for method, runs in recorded.items()
    }
    write_atomic(path, to_json(content, indent=1) + "\n")


def _run(entry: Any) -> RunNumbers:
    """An entry of the file. Raises ValueError for a number that is none."""
    numbers = entry["numbers"]
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}: {value!r} is not a finite number")
    return RunNumbers(numbers, str(entry["commit"]))
