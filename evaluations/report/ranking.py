"""Which of several runs leads, and whether that may be called best.

Two runs with other random numbers differ too. How much they do is known where settings were trained with several seeds:
the spread between seeds, pooled over all settings. A setting is called best where it leads the next one by more than
that spread explains (Student's t test for two means with a common variance, two-sided, at 95 %; not corrected for the
number of settings). Runs of different code are not ranked at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, variance

from evaluations.report.records import RecordedValue
from evaluations.report.rows import CODE_FACTS, Row, differing_settings, is_start_fact

SEED_KEY = "loop.seed"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Standing:
    """The setting that leads by one record, and by how much."""

    rows: list[Row]  # its runs: one per seed
    value: float  # the mean of its runs
    runner_up: float  # that of the next setting
    spread: float | None  # standard deviation between seeds; None where no setting has several runs
    is_best: bool  # whether it leads by more than the spread explains


def code_of_runs(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """{code that computed them: runs}, in words that name what differs; runs that say nothing of it are left out.

    There is a single entry where all are of the same code. The networks of a run may be of different code themselves.
    """
    codes = [(row, _code_of(row)) for row in rows]
    known = [(row, code) for row, code in codes if code]
    names = [name for name in CODE_FACTS if len({code.get(name) for _, code in known}) > 1]
    runs: dict[str, list[Row]] = {}
    for row, code in known:
        runs.setdefault(", ".join(f"{name} {code[name]}" for name in names if name in code), []).append(row)
    return runs


def _code_of(row: Row) -> dict[str, str]:
    """{fact of `CODE_FACTS`: its value in a run, or its values where its networks have several}."""
    values: dict[str, dict[str, None]] = {}
    for key, value in row.settings.items():
        name = key.rpartition(": ")[2]
        if name in CODE_FACTS:
            values.setdefault(name, {})[str(value)] = None
    return {name: " and ".join(several) for name, several in values.items()}


def settings_of_runs(rows: Sequence[Row]) -> list[list[Row]]:
    """The finished runs in groups of one setting: those that differ in nothing but the seed and the machine."""
    keys = [key for key in differing_settings(rows) if not is_start_fact(key) and not key.endswith(SEED_KEY)]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.state == "finished":
            groups.setdefault(tuple(repr(row.settings.get(key)) for key in keys), []).append(row)
    return list(groups.values())


def standing_of(value: RecordedValue, key: str, rows: Sequence[Row]) -> Standing | None:
    """Who leads by a record; None where neither direction is better, or fewer than two settings have it."""
    if value.better is None:
        return None

    # The mean of each setting, the leader first.
    groups = []
    for group in settings_of_runs(rows):
        with_number = [row for row in group if math.isfinite(row.recorded.get(key, math.nan))]
        if with_number:
            groups.append((with_number, [row.recorded[key] for row in with_number]))
    if len(groups) < 2:
        return None
    groups.sort(key=lambda group: mean(group[1]), reverse=value.better == "higher")
    (leaders, first), (_, second), *_ = groups

    # The spread between seeds, and whether the lead is larger.
    freedom = sum(len(numbers) - 1 for _, numbers in groups)
    if freedom == 0:
        return Standing(leaders, mean(first), mean(second), spread=None, is_best=False)
    squares = sum(variance(numbers) * (len(numbers) - 1) for _, numbers in groups if len(numbers) > 1)
    spread = math.sqrt(squares / freedom)
    error = spread * math.sqrt(1 / len(first) + 1 / len(second))
    is_best = abs(mean(first) - mean(second)) > _critical_t(freedom) * error
    return Standing(leaders, mean(first), mean(second), spread, is_best)


def _critical_t(freedom: int) -> float:
    """How many standard errors a difference of two equal means stays below with probability `CONFIDENCE`."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def standings_of(columns: Sequence[tuple[RecordedValue, str]], rows: Sequence[Row]) -> Mapping[str, Standing]:
    """{key: who leads} of all records; none where the runs are of different code."""
    if len(code_of_runs(rows)) > 1:
        return {}
    standings = {key: standing_of(value, key, rows) for value, key in columns}
    return {key: standing for key, standing in standings.items() if standing is not None}
