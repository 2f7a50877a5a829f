"""Charts of any numbers, and the small classifier that checks labels."""

import math
import re
import xml.dom.minidom

import mini
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.manifest import checkpoint_folders
from engine.config import load_config
from engine.data.classes import Classes
from engine.data.images import to_float
from engine.data.packaged import ArraySource
from engine.data.sources import SOURCES
from engine.messages import ConfigError
from engine.optim import OptimConfig
from engine.run_log import read_metrics
from engine.trained_model import TrainedModel
from evaluations.digits.model import Classifier, ClassifierConfig, classify, load_classifier
from evaluations.digits.training import ClassifierTask, ClassifierTrainConfig, shift_images, train
from evaluations.report.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_chart, nice_ticks

numbers = st.floats(-1e30, 1e30, allow_nan=False)


# ---------------------------------------------------------------------------------------------- charts
@settings(max_examples=200, deadline=None)
@given(low=numbers, span=st.floats(1e-7, 1e6))
def test_ticks_cover_any_range_in_a_few_equal_round_steps(low, span):
    """Also for equal ends and for a diverged loss: never more than nine, each 1, 2, 2.5 or 5 times a power of ten."""
    high = low + abs(low) * span + span
    ticks = nice_ticks(low, high)
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    assert 2 <= len(ticks) <= 9
    assert ticks[0] <= low + 1e-6 * step and ticks[-1] >= high - 1e-6 * step
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5, 10)) < 1e-3
    flat = nice_ticks(low, low)
    assert flat[0] <= low <= flat[-1] and flat[0] < flat[-1]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=30))
def test_any_series_is_valid_svg_inside_its_frame(values):
    """NaN and infinity are left out, single points and constants are fine, all coordinates lie in the picture."""
    chart = line_chart("loss <1>", {"a & b": [(10 * i, v) for i, v in enumerate(values)]})
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        assert chart == ""
        return
    svg = re.search(r"<svg.*</svg>", chart)[0]
    xml.dom.minidom.parseString(svg)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]*)"', svg)[1].split()]
    assert len(points) == len(finite)
    for x, y in points:
        assert LEFT <= x <= WIDTH - RIGHT and TOP - 0.1 <= y <= HEIGHT
    assert f"<b>{finite[-1]:.4g}</b>" in chart and "nan" not in svg
    assert "a &amp; b" in chart and "a & b" not in chart and "<1>" not in chart


def test_higher_values_stand_higher_and_later_steps_further_right():
    points = re.search(r'points="([^"]*)"', line_chart("t", {"a": [(0, 1.0), (5, 3.0), (10, 2.0)]}))[1].split()
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, p.split(","))) for p in points)
    assert x0 < x1 < x2 and y1 < y2 < y0
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)


# ---------------------------------------------------------------------------------------------- classifier
def test_shifts_move_each_image_by_its_own_offset():
    """Up to `max_shift` pixels each way, edges repeated; every offset occurs; 0 leaves images alone."""
    images = torch.rand(400, 3, 6, 6)
    moved = shift_images(images, 2)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    seen = set()
    for image, around in zip(moved.numpy(), padded, strict=True):
        fits = [(y, x) for y in range(5) for x in range(5) if np.array_equal(image, around[:, y : y + 6, x : x + 6])]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 25
    assert shift_images(images, 0) is images


@pytest.fixture
def stripes(monkeypatch):
    """Two classes that any classifier can tell apart: horizontal and vertical stripes with noise."""

    def source(config, split):
        rng = np.random.default_rng(split == "val")
        pattern = np.tile([[0], [255]], (8, 16)).astype(int)
        labels = np.arange(60) % 2
        images = [np.clip((p := pattern if k else pattern.T) + rng.normal(0, 60, p.shape), 0, 255) for k in labels]
        rgb = np.stack([np.repeat(image[..., None], 3, axis=2) for image in images]).astype(np.uint8)
        return ArraySource("mnist5k", rgb, labels.astype(np.int64), ["vertical", "horizontal"])

    monkeypatch.setattr(SOURCES["mnist5k"], "open", source)
    return source(None, "val")


def config_of(run_dir, *overrides):
    data = (
        "data={name: mnist5k, image_size: 16, global_batch_size: 20, num_workers: 0, random_crop: false, flip_prob: 0}"
    )
    own = ["model={width: 4, num_classes: 2, dropout: 0.1}", data, "optim={lr: 0.01, schedule: constant}"]
    loop = f"loop={{run_dir: {run_dir}, steps: 40, log_every: 10, device: cpu}}"
    return load_config(ClassifierTrainConfig, overrides=[*own, loop, *overrides])


def test_classifier_learns_and_comes_back(stripes, tmp_path, world):
    """Held-out accuracy 1 on an easy task; the loaded network gives the same answers in any batch size."""
    train(config_of(tmp_path / "run"), world)
    records = read_metrics(tmp_path / "run")
    assert [r["val/accuracy"] for r in records if "val/accuracy" in r] == [1.0]
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[-1] < 0.5 * losses[0]
    network = load_classifier(tmp_path / "run", Classes.of(stripes))
    images = torch.from_numpy(stripes.images).permute(0, 3, 1, 2).contiguous()
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    for size in (1, 7, 250):
        assert torch.equal(classify(network, images, size), torch.from_numpy(stripes.labels))


def test_a_classifier_keeps_the_checkpoints_and_the_precision_of_its_config(stripes, tmp_path, world):
    """`loop.keep_last`, `loop.keep_every` and `loop.precision` do what they say here too."""
    run = tmp_path / "run"
    train(config_of(run, "loop={steps: 5, save_every: 1, keep_last: 1, keep_every: 2}"), world)
    assert [folder.name[-1] for folder in checkpoint_folders(run)] == ["2", "4", "5"]

    train(config_of(tmp_path / "bf16", "loop={steps: 5, precision: bf16}"), world)
    losses = [[r["loss"] for r in read_metrics(path) if "loss" in r][-1] for path in (run, tmp_path / "bf16")]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)


def test_dropout_acts_in_training_only(world):
    """`classify` and the task set the mode themselves, whatever came before."""
    images, labels = mini.random_images(30), torch.arange(30) % 2
    network = Classifier(ClassifierConfig(width=4, num_classes=2, dropout=0.9)).train()
    expected = network.eval()(to_float(images)).argmax(1)
    assert torch.equal(classify(network.train(), images), expected)
    task = ClassifierTask(TrainedModel(network, OptimConfig(), total_steps=2, world=world), images, labels, 2, world)
    accuracy = task.evaluate(0)["val/accuracy"]
    assert accuracy == (expected == labels).double().mean().item() and not network.training
    task.train_step([{"images_u8": images, "labels": labels}], 0)
    assert network.training


def test_a_classifier_of_another_kind_is_refused(tmp_path):
    config = mini.tokenizer_config()
    with pytest.raises(ConfigError, match="model"):
        load_classifier(
            mini.export(tmp_path / "tokenizer", config, mini.tokenizer_of(config)), Classes.unknown(10, "the images")
        )
