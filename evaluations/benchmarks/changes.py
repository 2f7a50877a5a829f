"""What became slower or larger since an earlier benchmark.

Rows are compared by name. A case counts by its ratio to the plain form, which ran beside it, so that another load or
another machine does not matter; a reading counts by its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.messages import UserError
from evaluations.benchmarks.cases import OURS, Row

TOLERANCE = 1.1  # a change by less says nothing


def slower_rows(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """A line for each row of `new` that is slower or needs more memory than in `old`, or that has failed since.

    Raises UserError where the two were not taken with the same size and kind of device, or have no row in common.
    """
    for key in ("size", "device"):
        if old[key] != new[key]:
            raise UserError(f"the benchmarks differ in {key}: {old[key]!r} and {new[key]!r}; compare equal ones")
    rows_before = _rows_by_name(old)
    shared = [row for name, row in _rows_by_name(new).items() if name in rows_before]
    if not shared:
        raise UserError("the benchmarks have no row in common")

    for row in shared:
        before = rows_before[row["name"]]
        if "error" in before:
            continue
        if "error" in row:
            yield f"{row['name']}: failed ({row['error'].splitlines()[0]})"
            continue
        for what, costs in _costs(row).items():
            costs_before = _costs(before).get(what)
            if costs_before and costs > TOLERANCE * costs_before:
                yield f"{row['name']}: {what} {costs_before:.3g} -> {costs:.3g} ({costs / costs_before:.2f}x)"


def _rows_by_name(result: dict[str, Any]) -> dict[str, Row]:
    return {row["name"]: row for rows in result["topics"].values() for row in rows}


def _costs(row: Row) -> dict[str, float]:
    """Numbers of a row that should not grow."""
    if "reading" in row:
        is_gain = row["reading"].get("target", "").startswith("at least")
        return {} if is_gain else {row["unit"]: row["reading"]["value"]}
    costs = {f"time over {row['against']}": row["seconds"][OURS] / row["seconds"][row["against"]]}
    if None not in row.get("mib", {"": None}).values():
        costs["MiB"] = max(1.0, row["mib"][OURS])
    return costs
