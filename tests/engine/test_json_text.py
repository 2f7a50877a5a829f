"""Every JSON file of a run can be parsed by any reader: no NaN, no Infinity, one writer."""

import ast
import json
import math
from pathlib import Path

import pytest

from engine.checkpoint.manifest import json_digest
from engine.json_text import as_read_back, to_json
from engine.run_log import Run, read_metrics
from evaluations.results import read_result, write_result

ROOT = Path(__file__).parents[2]


def strict(text: str):
    """Parses as RFC 8259 says."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null_and_nothing_else_changes():
    facts = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "NaN", "d": None, "e": True, "f": 3}
    assert strict(to_json(facts)) == {"a": [1.5, None, [None, {"b": None}]], "c": "NaN", "d": None, "e": True, "f": 3}
    plain = {"x": 0.1, "y": [1, 2]}
    assert to_json(plain, indent=1) == json.dumps(plain, indent=1) and as_read_back({"x": (1, 2)}) == {"x": [1, 2]}
    assert json_digest({"b": 1, "a": 2}) == json_digest({"a": 2, "b": 1})


def test_records_of_a_run_are_json_and_read_back_as_nan(world, tmp_path):
    run = Run(tmp_path, None, world)
    run.log_metrics(1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.5})
    run.log_metrics(2, {"loss": 1.0, "grad_norm": 2.0, "lr": 0.5})
    run.close()
    first, _ = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert first["loss"] is None and first["grad_norm"] is None and first["lr"] == 0.5
    records = read_metrics(tmp_path)
    assert math.isnan(records[0]["loss"]) and records[1]["loss"] == 1.0
    assert "loss is not finite" in (tmp_path / "log.txt").read_text()


def test_a_metric_that_is_not_finite_is_no_result(tmp_path):
    """It is listed with its reason; the others, hours of work, are written."""
    path = tmp_path / "r.json"
    write_result(path, {"gfid": 3.5, "recall": math.nan}, {"kind": "generation"}, unavailable={"sfid": "no file"})
    result = strict(path.read_text())
    assert result["metrics"] == {"gfid": 3.5}
    assert result["unavailable"] == {"sfid": "no file", "recall": "its value is not finite (nan)"}
    assert read_result(path)["metrics"] == {"gfid": 3.5}


@pytest.mark.parametrize("package", ["engine", "tokenizer", "autoregressive", "evaluations"])
def test_there_is_one_writer(package):
    """`json.dump` and `json.dumps` are called in engine/json_text.py alone."""
    for path in (ROOT / package).rglob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Attribute)]
        writers = [n for n in calls if n.attr in ("dump", "dumps") and getattr(n.value, "id", "") == "json"]
        assert not writers or path.name == "json_text.py", path
