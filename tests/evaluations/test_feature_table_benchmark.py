"""evaluations/benchmarks/feature_tables.py: the rows measure all numbers of stored features, and what they cost."""

from dataclasses import asdict

import pytest
import torch

from evaluations.benchmarks import evaluation, feature_tables
from evaluations.benchmarks.cases import ALLOWED, OURS
from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.page import page_of, verdict
from evaluations.protocols.feature_numbers import DEFAULT_GROUPS, GROUPS, feature_numbers

CPU = torch.device("cpu")
RATES = Limits(read=1e9, gemm=1e9, gemm_bf16=1e9, convolution=1e9)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(evaluation, "DIM", 6)
    monkeypatch.setattr(feature_tables, "SETS", {"long": (80, 120)})


def test_the_measured_numbers_are_those_of_a_result(small):
    """All default groups but those that need CLIP or held-out images; none is unavailable."""
    assert {*feature_tables.TOGETHER} == {*DEFAULT_GROUPS} - {"cmmd", "copies"}
    assert {*feature_tables.COMPATIBLE} == {name for name, group in GROUPS.items() if not group.is_default}
    numbers = feature_numbers(feature_tables.tables_of(80, 120, CPU), [*feature_tables.TOGETHER, "kid_subsets"])
    assert not numbers.unavailable
    assert {"fid", "fid_infinity", "kid", "mind", "precision_k5", "coverage"} <= numbers.errors.keys()
    assert {"kid_subsets", "fid_covariances"} <= numbers.metrics.keys()


def test_rows_tell_seconds_and_memory(small):
    rows = [case.measure(1, RATES, CPU) for case in feature_tables.cases("long", CPU)]
    together = rows[0]
    seconds = [value for name, value in together["facts"].items() if name.startswith("seconds of ")]
    assert len(seconds) == 4 and together["reading"]["value"] == pytest.approx(sum(seconds))
    assert together["reading"]["target"] == "at most 90" and verdict(together) == "reached"
    assert len({row["name"] for row in rows}) == 4 and all(row["reading"]["value"] > 0 for row in rows)

    # The page has its memory beside the target.
    together |= {"mib": {OURS: 100.0, ALLOWED: 954.0}, "memory": {"value": 0.1, "target": "at most 1", "reached": True}}
    conditions = {"machine": "here", "size": "long", "repetitions": 1, "minutes": 0.1, "load": 0.0, "commit": "0" * 10}
    page = page_of({"topics": {"Numbers": rows}, "limits": asdict(RATES), **conditions})
    assert "| at most 90; memory at most 1 |  | 100 / 954 MiB | reached |" in page


def test_short_benchmarks_leave_them_out():
    assert not list(feature_tables.cases("quick", CPU))
