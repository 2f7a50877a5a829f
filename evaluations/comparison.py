"""Results side by side: which metrics they share, which is best, and in what their protocols differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluations.results import changed_facts, unranked

SMALLER_IS_BETTER = ("fid", "frechet", "lpips", "loss", "memorised", "bits", "seconds")
NO_QUALITY = ("_noise", "_real", "_stderr")  # endings of metrics that say nothing about a network
NOT_RANKED = ("best_guidance_scale", "best_base_lr", "precision_fp16", "recall_fp16")


def better(name: str, values: list[float]) -> float:
    """The best of the values of a metric."""
    return min(values) if any(part in name for part in SMALLER_IS_BETTER) else max(values)


def differing_images(paths: list[Path]) -> str | None:
    """How many generated images of two results differ, where both kept checksums of equal numbers of images."""
    tables = []
    for path in paths:
        arrays = path.with_suffix(".npz")
        if not arrays.is_file():
            return None
        with np.load(arrays, allow_pickle=False) as stored:
            if "checksums" not in stored.files:
                return None
            tables.append(stored["checksums"])
    if len(tables) != 2 or tables[0].shape != tables[1].shape:
        return None
    share = np.mean(tables[0] != tables[1])
    return f"{share:.2%} of the {len(tables[0])} generated images differ in some pixel"


def compare(named: Sequence[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[list[str]], list[str]]:
    """(metrics, cells by metric and result with * at the best, differences of protocols) of (name, result) pairs."""
    results = [result for _, result in named]
    problems = []
    for name, result in named[1:]:
        changed = changed_facts(results[0]["protocol"], result["protocol"], networks=False)
        problems += [f"{name}: {fact}" for fact in changed]
    general, partly = bool(problems), unranked([result["protocol"] for result in results])
    problems += sorted({f"only for some metrics: {fact}" for facts in partly.values() for fact in facts})
    values: list[dict[str, Any]] = [r["metrics"] for r in results]
    names = [n for n in values[0] if any(isinstance(v.get(n), int | float) for v in values)]
    names += sorted({n for v in values[1:] for n, x in v.items() if n not in values[0] and isinstance(x, int | float)})
    rows = []
    for name in names:
        found = [v.get(name) for v in values]
        best = None
        ranked = not general and not name.startswith(tuple(partly)) and not name.endswith(NO_QUALITY)
        if ranked and len(results) > 1 and None not in found and name not in NOT_RANKED:
            best = better(name, found)
        rows.append(["-" if v is None else f"{v:.5g}{'*' if v == best else ''}" for v in found])
    return names, rows, problems


def text_table(names: list[str], rows: list[list[str]], columns: list[str]) -> str:
    """The table for a terminal."""
    widths = [max(len(c), *(len(row[i]) for row in rows)) + 2 for i, c in enumerate(columns)]
    first = max(len(n) for n in [*names, "metric"])
    lines = ["metric".ljust(first) + "".join(c.rjust(w) for c, w in zip(columns, widths, strict=True))]
    for name, row in zip(names, rows, strict=True):
        lines.append(name.ljust(first) + "".join(c.rjust(w) for c, w in zip(row, widths, strict=True)))
    return "\n".join(lines)
