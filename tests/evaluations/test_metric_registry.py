"""What is known of metrics, in one place: names, titles, units, and metrics that plug-ins add."""

import pytest
import torch

from engine.messages import UserError
from evaluations.metrics.extractors import EXTRACTORS
from evaluations.metrics.registry import (
    METRICS,
    PUBLISHED_DISTANCE,
    UNPUBLISHED_SUFFIX,
    Metric,
    distance_name,
    find_metric,
    headline_metrics,
    metrics_to_compute,
    shown,
    title,
)


def test_every_name_of_a_distance_is_a_metric():
    """Both kinds of images and every extractor, published or not: smaller is better."""
    for extractor in EXTRACTORS.values():
        for measured in PUBLISHED_DISTANCE:
            for is_published in (True, False):
                name = distance_name(extractor.metric, measured, is_published)
                assert METRICS[name].better == "lower" and METRICS[name].depends_on == ("reference",)
        assert METRICS[f"{extractor.metric}_real"].better is None
    assert PUBLISHED_DISTANCE.keys() == UNPUBLISHED_SUFFIX.keys()


def test_metrics_are_found_by_name_and_by_group():
    assert find_metric("psnr") is METRICS["psnr"]
    group = find_metric("codebook_usage_group_12")
    assert (group.title, group.better, group.percent) == ("codebook usage, group 12", "higher", True)
    assert not group.headline
    assert find_metric("codebook_usage_scale_4").title == "codebook usage, scale 4"
    for unknown in ("psnr_2", "sharpness_group_1", "codebook_usage_group_x", "myfid"):
        assert find_metric(unknown) is None


@pytest.mark.parametrize(
    ("name", "value", "expected_title", "expected_value"),
    [
        ("psnr", 21.4567, "PSNR, dB", "21.46"),
        ("rfid", 0.81, "rFID", "0.81"),
        ("codebook_usage_group_0", 0.975, "codebook usage, group 0", "97.5%"),
        ("distinct", 1.0, "distinct code sequences", "100.0%"),
        ("distinct_codes", 1, "distinct tokens", "1"),
        ("sharpness", 0.5, "sharpness", "0.5"),
    ],
)
def test_metrics_are_shown_with_title_and_unit(name, value, expected_title, expected_value):
    """Fractions in percent, counts and unknown metrics as numbers."""
    assert (title(name), shown(name, value)) == (expected_title, expected_value)


def test_headlines_are_known_metrics_in_a_fixed_order():
    names = headline_metrics()
    assert names[:2] == ["rfid", "gfid"] and names[-1] == "top1"
    assert names.index("frechet_lite0_reconstruction") < names.index("psnr") < names.index("codebook_usage")


def test_only_metrics_with_a_function_can_be_asked_for(monkeypatch):
    """The error names what is accepted for this kind of evaluation."""
    with pytest.raises(UserError, match="--metrics psnr cannot be computed over pairs here; choose one of: none"):
        metrics_to_compute(["psnr"], "pairs")
    monkeypatch.setitem(METRICS, "a", Metric("a", "A", pairs=lambda x, y: x.mean((1, 2, 3))))
    monkeypatch.setitem(METRICS, "b", Metric("b", "B", images=lambda x: torch.zeros(len(x))))
    assert [metric.name for metric in metrics_to_compute(["a", "a"], "pairs")] == ["a"]
    with pytest.raises(UserError, match="--metrics b cannot be computed over pairs here; choose one of: a"):
        metrics_to_compute(["a", "b"], "pairs")
