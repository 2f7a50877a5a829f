"""The guidance search finds what an exhaustive grid finds; results are ranked only where protocols agree."""

import json
import os
import sys
from types import SimpleNamespace

import mini
import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive.guidance import Guidance
from engine import plugins
from engine.data.classes import Classes
from engine.data.folders import FolderSource
from engine.messages import UserError
from evaluations import compare as compare_entry
from evaluations import search_cfg
from evaluations.cli import output_path
from evaluations.comparison import compare, differing_images
from evaluations.jobs import search as jobs_search
from evaluations.jobs.search import Curve, SearchPlan, parse_scales, published_start, zero_order_search
from evaluations.metrics.intervals import jackknife
from evaluations.metrics.registry import METRICS, Metric
from evaluations.protocols.accumulators import Measurement
from evaluations.results import read_result, write_result


def visited(function, start, **options):
    """(the scales in the order of their measurement, the best)."""
    seen = []

    def measure(scale):
        seen.append(scale)
        return function(scale)

    best = zero_order_search(measure, start, **options)
    return seen, best


@pytest.mark.parametrize(
    ("function", "start", "path", "best"),
    [
        (lambda c: (c - 1.6) ** 2, 2.0, [2.0, 2.25, 1.75, 1.5, 1.25], 1.5),
        (lambda c: c, 1.75, [1.75, 2.0, 1.5, 1.25, 1.0], 1.0),
        (lambda c: min((c - 2.25) ** 2, (c - 4) ** 2 - 1), 2.25, [2.25, 2.5, 2.0], 2.25),
    ],
)
def test_the_search_walks_as_the_published_one_and_returns_its_best(function, start, path, best):
    """Up before down, never below 1, until both neighbours are worse: a local minimum, and not the last scale tried."""
    assert visited(function, start) == (path, best)


def test_an_upper_bound_and_a_coarse_step_are_kept():
    assert max(visited(lambda c: -c, 1.0, max_scale=2.0)[0]) == 2.0
    assert visited(lambda c: (c - 5) ** 2, 1.0, step=1.0)[1] == 5.0


def test_the_search_agrees_with_an_exhaustive_grid_on_a_stored_curve():
    """On a convex curve of distances, from any start."""
    grid = np.arange(1, 4.01, 0.25)
    curve = dict(zip(grid.tolist(), [9.1, 7.0, 5.6, 4.8, 4.5, 4.6, 5.0, 5.7, 6.6, 7.6, 8.7, 9.9, 11.0], strict=True))
    for start in curve:
        assert zero_order_search(curve.__getitem__, start, max_scale=4.0) == min(curve, key=curve.__getitem__)


def test_the_start_is_the_published_one():
    sizes = {"b": (2.5, 2.0), "l": (1.75, 1.75), "xl": (1.25, 1.75)}
    for size, (step, constant) in sizes.items():
        assert (published_start(size, "step"), published_start(size, "constant")) == (step, constant)
    assert published_start("b", "constant", "configs/vq/VQ_XLXXL256.yaml") == 1.75
    assert published_start(None, "another schedule") == 2.0


def test_a_plan_that_cannot_be_followed_is_refused():
    """From the flags alone: before any network is loaded."""
    for changes, message in (
        ({"step": 0.0}, "--step 0 must be above 0"),
        ({"coarse_step": -1.0}, "--coarse-step -1 must be above 0"),
        ({"step": float("nan")}, "--step nan must be above 0"),
        ({"start": 3.0, "max_scale": 2.0}, "starts at scale 3, outside 1..--max-scale 2"),
        ({"scales": "1,x"}, "numbers separated by commas"),
    ):
        with pytest.raises(UserError, match=message):
            SearchPlan(**{"start": 2.0, **changes})


def test_a_coarse_search_goes_before_the_fine_one():
    plan = SearchPlan(start=1.0, step=0.25, coarse_step=1.0)
    seen = []
    assert plan.run(lambda scale: seen.append(scale) or (scale - 3.6) ** 2) == 3.5
    assert seen[:4] == [1.0, 2.0, 3.0, 4.0] and 3.75 in seen


def test_a_curve_survives_a_kill_and_belongs_to_its_settings(tmp_path, world):
    """What was measured is not measured again; other settings are refused by name."""
    path = tmp_path / "search.partial.json"
    Curve(path, {"num_images": 8, "sampler": {"seed": 0}}, world).add(1.5, Measurement({"gfid": 3.0}, {"sfid": "why"}))
    again = Curve(path, {"num_images": 8, "sampler": {"seed": 0}}, world)
    assert again.rows == {1.5: {"gfid": 3.0}} and again.missing == {"sfid": "why"}
    with pytest.raises(
        UserError, match=r"search.json holds .* settings \(sampler.seed: 0, then 1\); .* such as .*search-2.json"
    ):
        Curve(path, {"num_images": 8, "sampler": {"seed": 1}}, world)


def test_a_curve_of_before_the_renames_goes_on(tmp_path, world):
    """Its settings are read under present names."""
    path = tmp_path / "search.partial.json"
    rows = [{"guidance_scale": 2.0, "metrics": {"gfid": 1.0}}]
    path.write_text(json.dumps({"settings": {"reference": {"crop": "centre"}}, "rows": rows}))
    assert Curve(path, {"reference": {"crop": "center"}}, world).rows == {2.0: {"gfid": 1.0}}


@pytest.mark.parametrize(("text", "message"), [("1,a", "numbers separated by commas"), ("0.5", "is 1 .off. or more")])
def test_scales_that_are_none_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_scales(text)
    assert parse_scales("1, 2.5") == [1.0, 2.5]


@pytest.fixture
def search(tmp_path, monkeypatch, world):
    """`search(*flags)` with distances to 2.5 instead of measured ones; `search.calls`: the scales. The third fails."""
    gpt = SimpleNamespace(num_classes=2, published_size=None, in_passes=False, classes=Classes.unknown(2, "gpt"))
    tokenizer = SimpleNamespace(image_size=16)
    for name, value in {
        "tokenizer_from": lambda *a: tokenizer, "gpt_from": lambda *a: gpt, "set_sampling": lambda *a: None,
        "extractor_from": lambda *a: SimpleNamespace(capabilities={"published"}),
        "images_from": lambda *a: None,
        "open_reference": lambda *a: SimpleNamespace(facts={}, reference=lambda *b, **c: SimpleNamespace(facts={})),
    }.items():  # fmt: skip
        monkeypatch.setattr(jobs_search, name, value)
    monkeypatch.setattr(
        jobs_search.SampleStream,
        "protocol",
        lambda self, r: {
            "sampler": {"guidance_scale": 0, "seed": 0},
            "tokenizer": {"path": "t"},
            "gpt": {"path": "g"},
        },
    )

    def metrics_at(job, scale):
        assert job.stream.at(scale).settings.guidance.scale == scale
        run.calls.append(scale)
        if len(run.calls) == 3:
            raise KeyboardInterrupt
        missing = {"recall": "why"} if scale == 2.25 else {}
        distance = abs(scale - 2.5)
        errors = {"gfid": jackknife(distance, [distance + shift for shift in (-0.2, 0.1, 0.3)])} if run.errors else {}
        return Measurement({"gfid": distance, "precision": scale}, missing, errors=errors)

    def run(*flags):
        own = ["--vq-ckpt", "t", "--gpt-ckpt", "g", "--cfg-scale", "2", "--output", str(tmp_path / "s.json")]
        monkeypatch.setattr(sys, "argv", ["search", *own, *flags])
        search_cfg.search(search_cfg.parse_args(), world)

    run.real_metrics_at = jobs_search.SearchJob.metrics_at
    monkeypatch.setattr(jobs_search.SearchJob, "metrics_at", metrics_at)
    run.calls = []
    run.errors = False  # whether distances have errors
    return run


def test_the_entry_returns_the_best_scale_with_its_curve(tmp_path, search):
    """Measured distances decide; a search that was stopped measures only what is missing, and still knows what could
    not be measured (that of the last scale before a kill was lost).
    """
    with pytest.raises(KeyboardInterrupt):
        search()
    assert not (tmp_path / "s.json").exists() and (tmp_path / "s.partial.json").exists()
    search()
    assert search.calls == [2.0, 2.25, 2.5, 2.5, 2.75]
    result = read_result(tmp_path / "s.json")
    assert result["metrics"] == {"best_guidance_scale": 2.5, "gfid": 0.0, "precision": 2.5}
    assert [row["guidance_scale"] for row in result["curve"]] == [2.0, 2.25, 2.5, 2.75]
    assert result["unavailable"] == {"recall": "why"}
    assert not (tmp_path / "s.partial.json").exists()


def test_a_search_that_was_stopped_has_the_intervals_of_one_that_was_not(tmp_path, search):
    """Those of scales that were measured before the stop are read back: error, ends and values without a block."""
    search.errors = True
    with pytest.raises(KeyboardInterrupt):
        search()
    search()
    search("--output", str(tmp_path / "whole.json"))
    assert search.calls == [2.0, 2.25, 2.5, 2.5, 2.75, 2.0, 2.25, 2.5, 2.75]

    stopped, whole = (read_result(tmp_path / name) for name in ("s.json", "whole.json"))
    assert stopped == whole and stopped["metrics"]["gfid_se"] > 0
    assert all(
        row["metrics"]["gfid_low"] < row["metrics"]["gfid"] < row["metrics"]["gfid_high"] for row in whole["curve"]
    )
    assert all(len(row["intervals"]["parts"]["gfid"]["values"]) == 3 for row in stopped["curve"])


def test_a_search_measures_copies_against_the_held_out_images(tmp_path, search, monkeypatch, world):
    """At every scale; one that goes on has the same ones."""
    features, seen = torch.ones(3, 2), []
    monkeypatch.setattr("evaluations.cli.held_out_features", lambda *given: features)
    monkeypatch.setattr(jobs_search, "GenerationDistances", lambda *given: seen.append(given))
    monkeypatch.setattr(jobs_search, "measure", lambda *given: Measurement({"gfid": float(len(seen))}))
    monkeypatch.setattr(jobs_search.SearchJob, "metrics_at", search.real_metrics_at)
    monkeypatch.setattr(jobs_search.SampleStream, "batches", lambda self, title: iter(()))
    search("--held-out", "test.npz", "--numbers", "frechet", "copies", "--scales", "1,2")
    assert len(seen) == 2 and all(given[-1] is features and "copies" in given[-2] for given in seen)
    assert read_result(tmp_path / "s.json")["settings"]["held_out"] == "test.npz"
    with pytest.raises(UserError, match=r"held_out: 'test\.npz', then 'other\.npz'"):
        search("--held-out", "other.npz", "--numbers", "frechet", "copies", "--scales", "1,2")


def test_a_finished_search_is_left_as_it_is(tmp_path, search, caplog):
    """A pipeline that was killed before it noted the end of its search goes on; other settings are refused by name."""
    search("--scales", "1,2")
    output, partial = tmp_path / "s.json", tmp_path / "s.partial.json"
    before, result = output.read_bytes(), read_result(output)
    settings = {name: value for name, value in result["settings"].items() if name != "search"}
    partial.write_text(json.dumps({"settings": settings, "rows": result["curve"]}))  # killed before it was removed
    caplog.set_level("INFO")
    search("--scales", "1,2")
    assert search.calls == [1.0, 2.0] and output.read_bytes() == before and not partial.exists()
    assert "holds this search, finished before" in caplog.text
    for flags, named in {
        ("--scales", "1,3"): "search.scales: '1,2', then '1,3'",
        (): "search.scales: '1,2', then None",
        ("--scales", "1,2", "--fp16-emulation"): "fp16_emulation: False, then True",
        ("--scales", "1,2", "--numbers", "none"): r"numbers: None, then \[\]",
        ("--scales", "1,2", "--numbers", "kid", "frechet"): r"numbers: None, then \['frechet', 'kid'\]",
    }.items():
        with pytest.raises(UserError, match=f"holds a finished search with other settings .{named}"):
            search(*flags)
    assert search.calls == [1.0, 2.0] and output.read_bytes() == before


# ---------------------------------------------------------------------------------------------- comparison
PROTOCOL = {
    "kind": "generation", "num_images": 8, "data": "/a", "sampler": {"seed": 0, "batch_size": 4},
    "reference": {"sha256": "x", "kind": "train"}, "tokenizer": {"fingerprint": "A"},
}  # fmt: skip


def write(folder, name, metrics, **changes):
    path = folder / f"{name}.json"
    write_result(path, metrics, PROTOCOL | changes, errors=mini.tiny_errors(metrics))
    return path


def exact_cells(row):
    """The cells of numbers whose intervals are 0, without these."""
    return [cell.replace(" ± 2.3e-09", "") for cell in row.cells()]


def test_equal_protocols_are_ranked(tmp_path):
    """Other networks, folders and batch sizes may differ; smaller distances and larger scores are better."""
    a = write(tmp_path, "a", {"gfid": 3.0, "inception_score": 100.0, "codes": [1]})
    changes = {"data": "/b", "sampler": {"seed": 0, "batch_size": 2}, "tokenizer": {"fingerprint": "B"}}
    b = write(tmp_path, "b", {"gfid": 2.0, "inception_score": 90.0, "recall": 0.5}, **changes)
    compared = compare([(p.stem, read_result(p)) for p in (a, b)])
    assert not compared.differences
    assert {row.metric: row.cells() for row in compared.rows} == {
        "gfid": ["3 ± 2.3e-09", "2 ± 2.3e-09*"],
        "inception_score": ["100 ± 2.3e-09*", "90 ± 2.3e-09"],
        "recall": ["-", "0.5 ± 2.3e-09"],
    }
    header, first, *_ = compared.text(["a", "b"]).splitlines()
    assert header.split() == ["metric", "a", "b"]
    assert first.split() == ["gfid", "3", "±", "2.3e-09", "2", "±", "2.3e-09*"]
    assert len(header) == len(first)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_images": 9}, "b: num_images: 8, then 9"),
        ({"reference": {"sha256": "y", "kind": "train"}}, "reference.sha256: 'x', then 'y'"),
        ({"sampler": {"seed": 1, "batch_size": 4}}, "sampler.seed: 0, then 1"),
        ({"rounding": "other"}, "rounding: None, then 'other'"),
        ({"kind": "reconstruction"}, "kind: 'generation', then 'reconstruction'"),
    ],
)
def test_different_protocols_are_not_ranked(tmp_path, monkeypatch, capsys, changes, named):
    """The table is printed without a best one, the difference is named, and the exit code says so."""
    paths = [write(tmp_path, "a", {"gfid": 3.0}), write(tmp_path, "b", {"gfid": 2.0}, **changes)]
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, paths)])
    with pytest.raises(SystemExit) as stopped:
        compare_entry.main()
    printed = capsys.readouterr().out
    assert stopped.value.code == 3 and named in printed and "*" not in printed


def test_images_of_two_results_are_counted_where_they_differ(tmp_path):
    paths = [write(tmp_path, name, {"gfid": 1.0}) for name in "ab"]
    assert differing_images(paths) is None
    for path, sums in zip(paths, ([1, 2, 3, 4], [1, 2, 3, 5]), strict=True):
        np.savez(path.with_suffix(".npz"), checksums=np.array(sums))
    assert differing_images(paths) == "25.00% of the 4 generated images differ in some pixel"


def test_results_of_before_the_renames_are_compared_with_new_ones(tmp_path):
    """`memorised` and crops by their old spelling: read under their present names, so that nothing differs."""
    protocol = {"kind": "generation", "crop": "bilinear centre", "reference": {"crop": "centre"}}
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps({"metrics": {"memorised": 0.5}, "protocol": protocol}))
    write_result(new, {"memorized": 0.25}, {**protocol, "crop": "bilinear center", "reference": {"crop": "center"}})
    compared = compare([(path.stem, read_result(path)) for path in (old, new)])
    assert not compared.differences
    assert [(row.metric, exact_cells(row)) for row in compared.rows] == [("memorized", ["0.5", "0.25"])]


def test_what_is_no_result_is_refused(tmp_path):
    for name, content in {"a": "{}", "b": "[1]", "c": "no json"}.items():
        (tmp_path / f"{name}.json").write_text(content)
        with pytest.raises(UserError, match="is not a result of an evaluation"):
            read_result(tmp_path / f"{name}.json")


def test_a_fact_of_some_metrics_leaves_the_others_ranked(tmp_path):
    """Another reference concerns distances, not PSNR; noise and standard errors are never ranked."""
    metrics = {"rfid": 2.0, "psnr": 20.0, "val_loss_stderr": 0.1}
    a = write(tmp_path, "a", metrics)
    b = write(tmp_path, "b", metrics | {"psnr": 21.0}, reference={"sha256": "y"}, classifier={"fingerprint": "c"})
    compared = compare([(p.stem, read_result(p)) for p in (a, b)])
    assert {row.metric: exact_cells(row) for row in compared.rows} == {
        "rfid": ["2", "2"], "psnr": ["20", "21*"], "val_loss_stderr": ["0.1", "0.1"],
    }  # fmt: skip
    assert "only for some metrics: reference.sha256: 'x', then 'y'" in compared.differences


def test_an_unknown_metric_is_shown_and_never_ranked(tmp_path):
    """Whatever its name ends or begins with. A group of the codebook counts as the codebook does."""
    metrics = {"rfid_of_mine": 1.0, "sharpness": 2.0, "codebook_usage_group_1": 0.5, "frechet_lite0_noise": 9.0}
    better = {"rfid_of_mine": 0.5, "sharpness": 3.0, "codebook_usage_group_1": 0.6, "frechet_lite0_noise": 8.0}
    paths = [write(tmp_path, "a", metrics), write(tmp_path, "b", better)]
    compared = compare([(p.stem, read_result(p)) for p in paths])
    assert {row.metric: exact_cells(row) for row in compared.rows} == {
        "rfid_of_mine": ["1", "0.5"], "sharpness": ["2", "3"],
        "codebook_usage_group_1": ["0.5", "0.6*"], "frechet_lite0_noise": ["9", "8"],
    }  # fmt: skip


def test_a_metric_of_a_plugin_is_ranked_only_with_the_same_plugins(tmp_path, monkeypatch):
    """A result says which were loaded; where they differ, metrics of the framework are ranked all the same."""
    monkeypatch.setitem(METRICS, "level", Metric("level", "Level", better="higher", images=lambda x: x[:, 0, 0, 0]))
    paths = []
    for name, sha256 in {"a": "1", "b": "1", "c": "2"}.items():
        monkeypatch.setattr(plugins, "stamp", lambda sha256=sha256: {"plugins": {"mine.py": sha256}})
        paths.append(write(tmp_path, name, {"level": float(len(paths)), "gfid": 3.0 - len(paths)}))
    results = [(path.stem, read_result(path)) for path in paths]
    same, other = compare(results[:2]), compare(results[1:])
    assert [exact_cells(row) for row in same.rows] == [["0", "1*"], ["3", "2*"]] and not same.differences
    assert [exact_cells(row) for row in other.rows] == [["1", "2"], ["2", "1*"]]
    assert other.differences == ["only for some metrics: plugins.mine.py: '1', then '2'"]


@pytest.mark.parametrize("bad", ["nan", "inf", "0.5"])
def test_a_scale_that_is_no_number_is_refused(bad):
    with pytest.raises(UserError, match=r"is 1 .off. or more"):
        parse_scales(bad)
    with pytest.raises(UserError, match=r"must be 1 .off. or more"):
        Guidance(scale=float(bad))


@pytest.mark.parametrize(
    ("name", "message"), [("x.npz", "must be the name of a .json file"), (".", "must be the name")]
)
def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        output_path(SimpleNamespace(output=tmp_path / name), "result")


def test_a_folder_is_known_by_its_content(tmp_path):
    """Other pixels in files of the same names and sizes give another identity, and a rewritten file another version."""
    path = tmp_path / "a" / "x.bmp"
    path.parent.mkdir()
    Image.new("RGB", (8, 8), "black").save(path)
    before = FolderSource(str(tmp_path), "data.root")
    facts = before.identity(), before.version()
    Image.new("RGB", (8, 8), "white").save(path)
    os.utime(path, ns=(1, 1))
    after = FolderSource(str(tmp_path), "data.root")
    assert after.identity() != facts[0] and after.version() != facts[1]
