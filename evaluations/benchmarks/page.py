"""The page of a benchmark (docs/benchmarks.md): a table for each topic, and what was missed and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evaluations.benchmarks.cases import ALLOWED, OURS, Row

JUDGED = ("time", "share_of_limit", "memory", "reading")  # parts of a row that can have a target
HEADER = """# How fast and how small

This page is written by `bash scripts/benchmark.sh`. Each row is the same work in two or more forms that run in turns in
one process: ours, and the plain formulation that most code uses, which stands in `evaluations/benchmarks`. The ratio
counts, because a busy machine slows all forms alike. A ratio with a target `at most` is our time over the other one;
with `at least` it is the gain, the other time over ours. Seconds are medians. The share of the limit is the time that
the least possible work would take at the rates of the machine, over the time that it took.
"""


def page_of(result: dict[str, Any]) -> str:
    """The page in Markdown of the result of a benchmark."""
    parts = [HEADER, _conditions(result)]
    for title, rows in result["topics"].items():
        parts.append(f"## {title}\n\n{_table(rows)}")
        parts += ["\n".join(notes)] if (notes := [line for row in rows for line in _notes(row)]) else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def verdict(row: Row) -> str:
    """`reached`, `missed`, `failed`, or nothing where there is no target."""
    if "error" in row:
        return "failed"
    judged = [row[part]["reached"] for part in JUDGED if "reached" in row.get(part, {})]
    return "" if not judged else "reached" if all(judged) else "missed"


def seconds_text(seconds: float) -> str:
    """A time with three digits and the unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


# ------------------------------------------------------------------------------------------------ parts of the page
def _conditions(result: dict[str, Any]) -> str:
    """What was measured where, and the limits of that machine."""
    limits = result["limits"]
    rows = [row for rows in result["topics"].values() for row in rows]
    verdicts = [verdict(row) for row in rows]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("reached", "missed", "failed"))
    lines = [
        f"- Targets: {counts}; {verdicts.count('')} rows have none.",
        f"- Machine: {result['machine']}.",
        f"- Size `{result['size']}`, {result['repetitions']} repetitions, {result['minutes']:.1f} minutes, "
        f"load of the machine at the start {result['load']:.1f}, commit {result['commit'][:10]}.",
        f"- Limits: reading {limits['read'] / 1e9:.1f} GB/s; matrix products {limits['gemm'] / 1e9:,.0f} GFLOP/s in "
        f"fp32, {limits['gemm_bf16'] / 1e9:,.0f} in bf16; convolution {limits['convolution'] / 1e9:,.0f} GFLOP/s.",
    ]
    return "\n".join(lines)


def _table(rows: list[Row]) -> str:
    """The rows of a topic as a Markdown table."""
    lines = [
        "| What | Ours | Against | Ratio | Target | Share of limit | Memory, ours / other | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = _cells(row)
        lines.append(f"| {' | '.join([row['name'], *cells, verdict(row)])} |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    """The cells of a row between its name and its verdict."""
    if "error" in row:
        return [row["error"].splitlines()[0], "", "", "", "", ""]
    if "reading" in row:
        targets = [row["reading"]["target"]] if "target" in row["reading"] else []
        memory, memory_targets = _memory(row)
        text = f"{row['reading']['value']:.4g} {row['unit']}"
        return [text, "", "", "; ".join(targets + memory_targets), "", memory]

    seconds, against = row["seconds"], row["against"]
    targets = [row["time"].get("target", "")]
    share = ""
    if "share_of_limit" in row:
        share = f"{row['share_of_limit']['value']:.0%}"
        targets.append(_with_name(row["share_of_limit"], "limit"))
    memory, memory_targets = _memory(row)
    targets += memory_targets
    return [
        seconds_text(seconds[OURS]),
        f"{against}: {seconds_text(seconds[against])}",
        f"{row['time']['value']:.2f}",
        "; ".join(target for target in targets if target),
        share,
        memory,
    ]


def _memory(row: Row) -> tuple[str, list[str]]:
    """The memory of a row where it was measured, and its target."""
    if "memory" not in row:
        return "", []
    mib = row["mib"]
    other = mib[ALLOWED] if ALLOWED in mib else mib[row["against"]]
    return f"{mib[OURS]:,.0f} / {other:,.0f} MiB", [_with_name(row["memory"], "memory")]


def _with_name(judged: Row, name: str) -> str:
    """The target of a part of a row that is not its time."""
    return f"{name} {judged['target']}" if "target" in judged else ""


def _notes(row: Row) -> Iterator[str]:
    """What does not fit into the table: further forms, facts, and the reason of a miss."""
    notes = []
    for name, seconds in row.get("seconds", {}).items():
        if name not in (OURS, row["against"]):
            notes.append(f"{name} {seconds_text(seconds)}")
    notes += [f"{name} {_fact_text(value)}" for name, value in row.get("facts", {}).items()]
    if verdict(row) == "missed":
        notes.append(f"missed: {row['where_missed'] or 'not explained yet'}")
    if notes:
        yield f"- {row['name']}: {'; '.join(notes)}."


def _fact_text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
