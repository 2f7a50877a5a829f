"""The usual formulations of the benchmark's metrics give the values of ours."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from engine.assets import AssetsConfig
from evaluations.benchmarks import evaluation
from evaluations.benchmarks.cases import ALLOWED, OURS, Target, compared
from evaluations.benchmarks.limits import Limits
from evaluations.benchmarks.page import page_of
from evaluations.metrics.frechet import frechet_distance
from evaluations.metrics.inception import InceptionExtractor
from evaluations.metrics.precision_recall import precision_recall

CPU = torch.device("cpu")
RATES = Limits(read=1e9, gemm=1e9, gemm_bf16=1e9, convolution=1e9)


@pytest.mark.parametrize("plain", [evaluation.distance_by_eigenvalues, evaluation.distance_by_root])
def test_frechet_distance(plain):
    a, b = evaluation.gaussian(40, 0), evaluation.gaussian(40, 1)
    assert frechet_distance(a, b) == pytest.approx(plain(a, b), rel=1e-9)


def test_precision_and_recall():
    """Sets that overlap in part: neither value is 0 or 1, and an image moves no border."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(60, 3, generator=generator)
    samples = torch.randn(90, 3, generator=generator) * 0.7 + 1.0
    plain = evaluation.tables_precision_recall(reference, samples)
    assert precision_recall(reference, samples.clone()) == pytest.approx(plain)
    assert all(0.1 < value < 0.9 for value in plain)


def test_features():
    extractor = InceptionExtractor(AssetsConfig(random_stand_in=True))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (plain,) = extractor.network.network(images)
    pool = extractor(images)["pool"]
    torch.testing.assert_close(pool, plain.view_as(pool), rtol=1e-4, atol=1e-5 * pool.abs().max().item())


def test_rows(monkeypatch):
    """Every row has ours and what it is measured against; the whole evaluation says its time, limit and memory."""
    monkeypatch.setattr(evaluation, "DIM", 16)
    monkeypatch.setattr(evaluation, "ROOT_DIM", 8)
    monkeypatch.setattr(evaluation, "_inception_case", lambda count, device: None)
    monkeypatch.setattr(evaluation, "WHOLE_SETS", (20, 30))
    rows = [row for row in evaluation.cases("long", CPU) if row is not None]
    assert len({row.name for row in rows}) == len(rows) == 4
    for case in rows[:-1]:
        assert {OURS, case.against} == set(case.forms)
        assert np.allclose(case.forms[OURS](), case.forms[case.against]())
    row = rows[-1].measure(1, RATES, CPU)
    assert row["seconds"][evaluation.PRODUCTS] == pytest.approx(2 * 16 * (400 + 900 + 600) / 1e9)
    assert row["time"]["target"] == Target("at most", 1.3).text()
    assert "mib" not in row or row["memory"]["reached"] in (True, False)

    # The page shows it, with the memory that is allowed beside ours.
    row |= {"mib": {OURS: 100.0, ALLOWED: 2000.0}, "memory": compared(Target("at most", 1.0), 100.0, 2000.0)}
    conditions = {"machine": "here", "size": "long", "repetitions": 1, "minutes": 0.1, "load": 0.0, "commit": "0" * 10}
    result = {"topics": {"Evaluation": [row]}, "limits": asdict(RATES), **conditions}
    assert "| 100 / 2,000 MiB |" in page_of(result)
