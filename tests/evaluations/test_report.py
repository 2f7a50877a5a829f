"""Result files, charts and the report page."""

import json
import math
import re
import shutil
import xml.dom.minidom

import mini
import numpy as np
import pytest
import torch

from engine.checkpoint.weights import fingerprint
from engine.config import load_config
from engine.data.sources import SOURCES
from engine.messages import UserError
from engine.pipeline import Stage, StageLog
from evaluations import quickstart
from evaluations.digits.model import Classifier
from evaluations.digits.training import ClassifierTrainConfig
from evaluations.pipelines.quickstart import (
    SYSTEMS,
    check_flags,
    collect,
    configs_of,
    has_classifier,
    image_size_of,
    results_table,
    run_folder,
    stages_of,
)
from evaluations.probes.pca import principal_components
from evaluations.report.charts import line_chart, nice_ticks
from evaluations.report.first_screen import result_cards
from evaluations.report.run_folder import RunFolder
from evaluations.report.scale import classifier_accuracy
from evaluations.report.write import write_report
from evaluations.results import read_result, write_result
from evaluations.visualize import parse_args as parse_visualize
from evaluations.visualize import visualize

PROTOCOL = {"data": "mnist5k", "codebook_size": 256, "num_tokens": 16, "num_images": 9}
REFERENCE = {"split": "train", "num_images": 4500}


@pytest.fixture
def finished(tmp_path):
    """The folder of a finished quick start, with made-up numbers."""
    run = tmp_path / "quickstart"
    results = run / "evaluations"
    metrics = {"psnr": 21.0, "codebook_usage": 0.9, "frechet_lite0_reconstruction": 90.0, "frechet_lite0_real": 4.0}
    write_result(results / "reconstruction.json", metrics, PROTOCOL, errors=mini.tiny_errors({"psnr": 21.0}))
    metrics = {"frechet_lite0_generated": 95.0, "frechet_lite0_noise": 2000.0, "distinct": 1.0, "memorized": 0.1}
    sampler = {"sampler": {"guidance_scale": 2.0}}
    write_result(results / "generation.json", metrics | {"label_agreement": 0.95}, sampler)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    scores = {"numbers": np.arange(4), "score_psnr": np.full(9, 20.5), "code_counts": np.array([[3.0, 0.0, 1.0, 2.0]])}
    np.savez(results / "reconstruction.npz", originals=images, reconstructions=images, **scores)
    names = np.array(["<zero>", "one"])
    facts = {"labels": np.array([0, 0, 1, 1]), "nearest": images, "num_candidates": 4, "class_names": names}
    np.savez(results / "generation.npz", images=images, **facts)
    for name, line in {
        "tokenizer": {"step": 1, "val/psnr": 10.0},
        "gpt": {"step": 1, "loss": 5.0},
        "classifier": {"step": 1, "val/accuracy": 0.98},
    }.items():
        (run / name).mkdir()
        (run / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    log = StageLog(run)
    log.note("tokenizer", 12.34, 20.0, done=True)
    return run


def test_results_have_exactly_the_promised_keys(finished):
    """`results.json`: fractions, dB and seconds by stage, and nothing else."""
    results = collect(finished, StageLog(finished))
    keys = "psnr codebook_usage codebook_size num_tokens frechet_lite0 label_agreement classifier_accuracy distinct"
    assert set(results) == {*keys.split(), "memorized", "guidance_scale", "seconds", "cpu_seconds"}
    assert set(results["frechet_lite0"]) == {"real", "reconstruction", "generated", "noise"}
    assert (
        results["seconds"] == {"tokenizer": 12.3}
        and results["cpu_seconds"] == {"tokenizer": 20.0}
        and results["classifier_accuracy"] == 0.98
    )
    assert "21.00 dB" in results_table(results) and "95.0%" in results_table(results)


def test_cards_say_what_a_number_should_be_seen_beside(finished):
    """The images of a distance and values that give it a scale; tokens times bits; codes; the classifier itself."""
    metrics = {"frechet_lite0_reconstruction": 90.0, "frechet_lite0_real": 4.0, "bits_per_image": 128.0}
    protocol = {**PROTOCOL, "reference": REFERENCE}
    write_result(finished / "evaluations" / "reconstruction.json", {**metrics, "codebook_usage": 0.5}, protocol)
    metrics = {"frechet_lite0_generated": 95.0, "frechet_lite0_noise": 2000.0, "label_agreement": 0.95, "memorized": 0}
    facts = {"num_images": 100, "reference": REFERENCE, "training_codes": {"num_images": 4500}, "classifier": None}
    write_result(finished / "evaluations" / "generation.json", metrics, facts)
    run = RunFolder(finished)
    cards = {card.name: card for card in result_cards(run)}

    scale = "for scale: held-out real images 4 (9), uniform noise 2000 (100)"
    assert cards["frechet_lite0, generated"].scale == f"100 images against 4,500 real ones; {scale}"
    assert cards["frechet_lite0, reconstructed"].scale == f"9 images against 4,500 real ones; {scale}"
    assert cards["bits per image"].scale == "16 tokens x 8 bits" and "better" not in cards["bits per image"].meaning
    assert cards["codebook usage"].scale == "of 9 images; 256 codes"
    assert cards["memorized code sequences"].scale == "100 sequences against those of 4,500 training images"
    assert "not on record" in cards["class accuracy"].scale

    # Values of another reference give no scale.
    other = {**PROTOCOL, "reference": {**REFERENCE, "num_images": 7}}
    write_result(finished / "evaluations" / "reconstruction.json", {"frechet_lite0_real": 4.0}, other)
    (of_generated,) = [card for card in result_cards(RunFolder(finished)) if card.name == "frechet_lite0, generated"]
    assert "held-out real" not in of_generated.scale and "uniform noise 2000" in of_generated.scale


def test_the_accuracy_of_a_classifier_is_that_of_the_weights_that_judged(finished):
    """Those of the fingerprint in the protocol; of others, or of none, nothing is said."""
    config = load_config(ClassifierTrainConfig, overrides=["data.name=mnist5k"])
    network = Classifier(config.model)
    shutil.rmtree(finished / "classifier")
    mini.export(finished / "classifier", config, network)
    (finished / "classifier" / "metrics.jsonl").write_text('{"step": 1, "val/accuracy": 0.98}\n')
    run = RunFolder(finished)
    assert classifier_accuracy(run, fingerprint(network)) == 0.98
    assert classifier_accuracy(run, "another") is None and classifier_accuracy(run, None) is None


def test_report_is_one_self_contained_page(finished):
    """Pictures are inside, no file or address is referred to, names are escaped, samples.png is written."""
    (finished / "results.json").write_text(json.dumps(collect(finished, StageLog(finished))))
    page = write_report([finished]).read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "http" not in page.split("<footer>")[0]
    assert page.count("data:image/png;base64,") == 2 * 4 + 2 * 4 + 1, "pairs, samples above neighbors, the code map"
    assert "20.5 dB" in page and "4 codes over the held-out images; 1 never occur" in page
    assert "&lt;zero&gt;" in page and "<zero>" not in page
    assert "the first samples of each class, not selected; seed 0, guidance scale 2, temperature 1." in page
    assert "It is not FID" in page and "MNIST digits" in page
    assert (finished / "samples.png").is_file()


def test_scales_have_a_line_and_a_map_each_beside_all_codes(finished):
    """The arrays of a quantizer of scales, and what its training recorded, coarse scales first."""
    path = finished / "evaluations" / "reconstruction.npz"
    counts = {"scales": np.array([1, 10]), "scale_counts": np.array([[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0]])}
    np.savez(path, **dict(np.load(path)), **counts)
    line = {
        "step": 1,
        "codebook_usage_scale_10": 0.5,
        "codebook_usage_scale_1": 0.25,
        "val/codebook_usage_scale_1": 0.5,
    }
    (finished / "tokenizer" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = write_report([finished]).read_text()
    assert page.index("scale 1 x 1") < page.index("scale 10 x 10") and "1 never occur" in page
    assert page.count("data:image/png;base64,") == 2 * 4 + 2 * 4 + 3, "the map of all codes, and one per scale"
    assert re.search(r"codebook_usage_scale_1\b", page).start() < page.index("codebook_usage_scale_10")
    assert "Codebook usage by scale, held out" in page


def test_a_report_that_was_killed_is_written_again(finished, monkeypatch):
    """The page comes first, so that the picture always belongs to one; a picture of the user's stays."""

    def killed(*_arguments, **_options):
        raise KeyboardInterrupt

    picture = finished / "samples.png"
    for cut in ("write_atomic", "write_samples_picture"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"evaluations.report.write.{cut}", killed)
            write_report([finished])
        assert not picture.exists()
    write_report([finished])
    assert picture.is_file()

    (finished / "report.html").unlink()
    with pytest.raises(UserError, match="belongs to no report"):
        write_report([finished])


def test_report_shows_what_is_there(finished):
    """Parts without data are left out, metrics that are unavailable are named with the reason."""
    (finished / "evaluations" / "generation.npz").unlink()
    write_result(finished / "evaluations" / "extra.json", {"gfid": 3.0}, {}, unavailable={"sfid": "no mu_s <here>"})
    page = write_report([finished]).read_text()
    assert "Generated images" not in page and "sfid is missing: no mu_s &lt;here&gt;" in page
    with pytest.raises(UserError, match="neither evaluations"):
        (finished / "empty").mkdir()
        write_report([finished / "empty"])


def test_a_search_is_drawn_over_the_guidance_scale(finished):
    """One chart for each metric of the curve."""
    curve = [{"guidance_scale": s, "metrics": {"gfid": 4 - s, "inception_score": 10 * s}} for s in (1.0, 1.5, 2.0)]
    write_result(finished / "evaluations" / "search.json", {"best_guidance_scale": 2.0, "gfid": 2.0}, {}, curve=curve)
    page = write_report([finished]).read_text()
    assert "gfid over the guidance scale" in page and "inception_score over the guidance scale" in page


def test_several_runs_stand_side_by_side(finished, tmp_path):
    """Ranked where protocols agree; the differences are named where they do not."""
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    metrics = {"psnr": 25.0, "codebook_usage": 0.9}
    write_result(other / "evaluations" / "reconstruction.json", metrics, PROTOCOL, errors=mini.tiny_errors(metrics))
    write_result(other / "evaluations" / "generation.json", {"distinct": 0.5}, {"sampler": {"guidance_scale": 3.0}})
    page = write_report([finished, other], tmp_path / "both.html").read_text()
    assert "25 ± 2.3e-09*" in page and "other: sampler.guidance_scale: 2.0, then 3.0" in page


def training(folder, config, **values):
    """A run folder of two records."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    records = [{"step": step, **{name: value / step for name, value in values.items()}} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_one_training_has_a_report_of_its_curves(tmp_path):
    """Of its own kind, which the config tells; also in phases."""
    kinds = {
        "tokenizer": ("loss: {l2_weight: 1}", {"val/psnr": 20.0}, "Validation PSNR"),
        "gpt": ("data: {codes: x}", {"loss": 5.0}, "Cross entropy per token"),
        "probe": ("probe: {epochs: 1}", {"loss/0.1": 5.0}, "Loss per base learning rate"),
        "phases/phase_1": ("loss: {l2_weight: 1}", {"val/psnr": 20.0}, "Validation PSNR"),
    }
    for name, (config, values, chart) in kinds.items():
        training(tmp_path / name, config, **values)
        folder = tmp_path / name.partition("/")[0]
        path = write_report([folder])
        assert path == folder / "report.html" and chart in path.read_text()


def test_a_folder_of_runs_has_an_overview(finished, tmp_path):
    """One row per run: its networks with their steps and newest records, and the headline numbers of its results."""
    training(finished.parent / "other", "data: {codes: x}", **{"val/loss": 5.0})
    page = write_report([finished.parent]).read_text()
    assert "<h2>Runs</h2>" in page and "<th>GPT: validation loss</th>" in page
    assert ">other</a></td>" in page and 'data-value="2.5">2.5</td>' in page
    assert f">{finished.name}</a></td>" in page and "PSNR, dB" in page and "<h2>Curves of all runs</h2>" in page
    (tmp_path / "nothing" / "here").mkdir(parents=True)
    with pytest.raises(UserError, match="no folder in it is a run"):
        write_report([tmp_path / "nothing"])


def test_principal_components_are_those_of_numpy():
    """Three components over all cells together, scaled to 0..1, the same for every call."""
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.standard_normal((2, 4, 4, 6)) * np.array([9, 5, 3, 1, 1, 1.0]))
    found = principal_components(features)
    flat = features.reshape(-1, 6).numpy() - features.reshape(-1, 6).numpy().mean(0)
    scores = flat @ np.linalg.eigh(np.cov(flat.T))[1][:, ::-1][:, :3]
    for i in range(3):
        assert abs(np.corrcoef(found[..., i].ravel(), scores[:, i])[0, 1]) > 0.98  # the ends are cut off
    assert found.min() == 0 and found.max() == 1 and np.array_equal(found, principal_components(features))


def test_the_figure_shows_tokenizers_side_by_side(tmp_path, monkeypatch):
    """Images of one class, one strip for each tokenizer; an unknown class is refused with those that there are."""
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: mini.image_source(20))
    config = mini.tokenizer_config()
    paths = [str(mini.export(tmp_path / name, config, mini.tokenizer_of(config, i))) for i, name in enumerate("ab")]
    flags = ["--vq-ckpt", paths[0], "--vq-ckpt", paths[1], "--device", "cpu", "--output", str(tmp_path / "pca.npz")]
    monkeypatch.setattr("sys.argv", ["entry", *flags, "--class-name", "2", "--num-images", "3"])
    visualize(parse_visualize())
    with np.load(tmp_path / "pca.npz") as stored:
        assert stored["map_0"].shape == stored["map_1"].shape == stored["originals"].shape == (3, 3, 16, 16)
        assert stored["names"].tolist() == ["a", "b"] and "decoder block 1" in str(stored["note"])
        assert not np.array_equal(stored["map_0"], stored["map_1"])
    assert (tmp_path / "pca.png").is_file()
    monkeypatch.setattr("sys.argv", ["entry", *flags, "--class-name", "cat"])
    with pytest.raises(UserError, match="--class-name 'cat' is not a class of mnist5k; it has: 0, 1, 2, 3"):
        visualize(parse_visualize())


def test_result_file_is_complete_or_absent(tmp_path, monkeypatch):
    """A crash while writing leaves the old file; every result carries protocol and library versions."""
    path = tmp_path / "result.json"
    write_result(path, {"psnr": 1.0}, {"kind": "reconstruction"})
    monkeypatch.setattr("pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(OSError("stop")))
    with pytest.raises(OSError, match="stop"):
        write_result(path, {"psnr": 2.0}, {})
    result = read_result(path)
    assert result["metrics"] == {"psnr": 1.0} and result["protocol"] == {"kind": "reconstruction"}
    assert {"python", "torch", "numpy"} <= result["libraries"].keys()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (1e-6, 2e-6), (5, 5), (0, 123456)])
def test_ticks_are_round_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 9
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_chart_leaves_out_what_is_not_finite_and_is_valid_svg():
    """A NaN breaks nothing, names are escaped, and a chart without points is empty text."""
    chart = line_chart("a < b", {"x & y": [(0, 1.0), (1, math.nan), (2, 3.0)], "empty": [(0, math.inf)]}, "dB")
    xml.dom.minidom.parseString(re.search(r"<svg.*</svg>", chart)[0])
    assert "nan" not in chart and "x &amp; y" in chart and "empty" not in chart
    assert line_chart("nothing", {"x": [(0, math.nan)]}) == ""


class Args:
    system = "gigatok"

    data, short, fresh, complete, seed, classifier = "mnist5k", False, False, False, None, None


def test_a_quick_start_continues_the_newest_run_and_fresh_takes_a_new_folder(tmp_path):
    """runs/quickstart, then with --fresh -2 and -3; without it the newest goes on; nothing is deleted."""
    args = Args()
    args.runs_dir = tmp_path
    first = run_folder(args)
    assert first == tmp_path / "quickstart"
    first.mkdir()
    assert run_folder(args) == first
    args.fresh = True
    second = run_folder(args)
    assert second == tmp_path / "quickstart-2"
    second.mkdir()
    assert run_folder(args) == tmp_path / "quickstart-3" and first.is_dir()
    args.fresh = False
    assert run_folder(args) == second


@pytest.mark.parametrize(
    ("data", "short", "seed", "name", "size", "classifier"),
    [
        ("mnist5k", False, None, "quickstart", 32, True),
        ("mnist5k", True, 3, "quickstart-seed3-short", 32, True),
        ("twemoji", False, None, "quickstart-twemoji", 64, False),
        ("twemoji", True, None, "quickstart-twemoji-short", 64, False),
    ],
)
def test_a_quick_start_knows_its_data_from_the_configs(tmp_path, data, short, seed, name, size, classifier):
    """Image size and classifier are read from the YAMLs, overlays in their order; the folder says what is not usual."""
    args = Args()
    args.data, args.short, args.seed, args.runs_dir = data, short, seed, tmp_path
    assert run_folder(args) == tmp_path / name
    assert (image_size_of(args), has_classifier(args)) == (size, classifier)
    args.system = "wetok"
    if data == "twemoji":
        with pytest.raises(UserError, match="--system wetok has settings for --data mnist5k only, not for twemoji"):
            check_flags(args)
    else:
        check_flags(args)


def test_another_generator_takes_tokenizer_and_codes_of_a_finished_run(tmp_path):
    """Of the default system with the same seed, once both are done; a tokenizer of its own, once begun, goes on."""
    args = Args()
    args.runs_dir, args.system = tmp_path, "rar"

    def stages_with(**done: bool) -> dict[str, Stage]:
        (tmp_path / "quickstart").mkdir(exist_ok=True)
        log = {name: {"seconds": 1.0, "cpu_seconds": 1.0, "done": is_done} for name, is_done in done.items()}
        (tmp_path / "quickstart" / "stages.json").write_text(json.dumps(log))
        return {stage.name: stage for stage in stages_of(args, run_folder(args))}

    assert {"tokenizer", "codes"} <= stages_with(tokenizer=True, codes=False).keys()
    stages = stages_with(tokenizer=True, codes=True)
    assert not {"tokenizer", "codes"} & stages.keys()
    assert f"data.codes={tmp_path}/quickstart/codes" in stages["gpt"].arguments
    assert f"loop.run_dir={tmp_path}/quickstart-rar/gpt" in stages["gpt"].arguments
    for name in ("reconstruction", "generation"):
        assert f"{tmp_path}/quickstart/tokenizer" in stages[name].arguments

    args.seed = 2
    assert "tokenizer" in stages_with(tokenizer=True, codes=True)
    args.seed, args.system = None, "fsq"
    assert "tokenizer" in stages_with(tokenizer=True, codes=True)
    args.system = "rar"
    (tmp_path / "quickstart-rar" / "tokenizer").mkdir(parents=True)
    assert "tokenizer" in stages_with(tokenizer=True, codes=True)


def test_a_system_has_data_of_its_own(tmp_path, monkeypatch):
    """Its recipes are whole ones: that of the data is not laid over them again."""
    monkeypatch.setattr("sys.argv", ["quickstart", "--system", "text", "--runs-dir", str(tmp_path)])
    args = quickstart.parse_args()
    check_flags(args)
    assert run_folder(args) == tmp_path / "quickstart-text" and args.data == "text"
    assert configs_of(args, "tokenizer") == ["quickstart/text/tokenizer"]
    assert (image_size_of(args), has_classifier(args)) == (32, False)


@pytest.mark.parametrize(
    ("system", "data"), [("gigatok", "twemoji"), *((name, system.data[0]) for name, system in SYSTEMS.items())]
)
@pytest.mark.parametrize("short", [False, True])
def test_every_command_of_the_quick_start_is_accepted_by_its_entry(tmp_path, monkeypatch, entry, system, data, short):
    """The arguments of each stage parse in the entry that the stage runs, and each training config fits together."""
    import importlib

    args = Args()
    args.runs_dir, args.data, args.short, args.complete = tmp_path, data, short, system != "wetok"
    args.system = system
    for stage in stages_of(args, tmp_path / "run"):
        module = importlib.import_module(stage.command[3])
        monkeypatch.setattr("sys.argv", ["entry", *stage.command[4:]])
        if hasattr(module, "parse_args"):
            module.parse_args()
        elif stage.name == "ar_probe":
            assert module.parse_cli(module.ARProbeConfig, "")[0].gpt_configs
        else:
            code, _, err = entry(module.main, *stage.command[4:], "--dry-run")
            assert code == 0, err
