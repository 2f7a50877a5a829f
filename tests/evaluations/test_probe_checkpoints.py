"""Every checkpoint of a training is measured once, by the same commands, and drawn in one picture."""

import csv
import json

import pytest
import tiny
from forked_stages import ForkedStages
from mains import refused

import tokenizer.train
from engine import pipeline
from engine.checkpoint.manifest import json_digest, read_manifest
from evaluations import probe_checkpoints
from evaluations.metrics.intervals import Estimate
from evaluations.pipelines.ar_probe import ARProbeConfig, collect
from evaluations.pipelines.checkpoint_probes import checkpoints_of, stages_of
from evaluations.probe_checkpoints import settings_of
from evaluations.results import scalars_of, write_result

QUICK = ["probe.features=cached", "probe.epochs=1", "probe.warmup_epochs=0", "probe.base_lrs=[0.1]"]
SMALL = [
    "data.image_size=8",
    "data.num_workers=0",
    "data.global_batch_size=4",
    "loop.device=cpu",
    "loop.precision=fp32",
    "loop.grad_accum=1",
]


def train(folder, image_folder, world, steps):
    """A tokenizer's training whose checkpoints all stay."""
    options = [f"loop.steps={steps}", "loop.save_every=1", "loop.keep_every=1", "optim.schedule=constant"]
    tokenizer.train.train(tiny.tokenizer_config(folder, image_folder, *options), world)


def parsed(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["entry", *map(str, arguments)])
    return probe_checkpoints.parse_args()


def test_each_checkpoint_has_the_same_stages(tmp_path, image_folder, world, monkeypatch):
    """In the order of training; --steps and --probes choose, and the recipes are those that are named."""
    train(tmp_path / "run", image_folder, world, 2)
    args = parsed(monkeypatch, tmp_path / "run", "--output", tmp_path / "out", "--ar-probe", "quickstart/ar_probe",
                  "--ar-probe-set", "num_fid_samples=7", "--reconstruction-flags", "--extractor none")  # fmt: skip
    checkpoints = checkpoints_of(args.run, args.steps)
    stages = stages_of(args.output, checkpoints, settings_of(args))
    assert [stage.name for stage in stages] == [
        *(f"step_0000000{step} {probe}" for step in (1, 2) for probe in ("reconstruction", "linear_probe", "ar_probe")),
        "scaling",
    ]  # fmt: skip
    assert stages[0].arguments[-2:] == ["--extractor", "none"] and stages[0].arguments[1].endswith("step_00000001")
    assert stages[1].arguments[:2] == ["--config", "eval/linear_probe_tokenizer"]
    assert stages[5].arguments[1] == "quickstart/ar_probe" and stages[5].arguments[-1] == "num_fid_samples=7"
    keys = {text.partition("=")[0] for text in stages[5].arguments if "=" in text}
    assert keys <= {*ARProbeConfig.__dataclass_fields__}

    args = parsed(monkeypatch, tmp_path / "run", "--output", tmp_path / "out", "--steps", "2", "--probes", "ar_probe")
    stages = stages_of(args.output, checkpoints_of(args.run, args.steps), settings_of(args))
    assert [stage.name for stage in stages] == ["step_00000002 ar_probe", "scaling"]


def test_checkpoints_that_came_later_are_measured_too(tmp_path, image_folder, world, entry, monkeypatch):
    """Those that are measured are not measured again; other settings and other weights are refused."""
    run, output = tmp_path / "run", tmp_path / "out"
    images = ["data.name=folder", f"data.root={image_folder}/train", f"data.val_root={image_folder}/val"]
    flags = ["--probes", "reconstruction,linear_probe"]
    flags += ["--reconstruction-flags", f"--data-path {image_folder}/val --extractor none --per-proc-batch-size 2"]
    for override in (*images, *SMALL, *QUICK):
        flags += ["--linear-probe-set", override]
    monkeypatch.setattr(pipeline, "_run", stages := ForkedStages(output))

    # Two checkpoints, then a third one.
    train(run, image_folder, world, 2)
    code, _, err = entry(probe_checkpoints.main, run, "--output", output, *flags)
    assert code == 0, err
    train(run, image_folder, world, 3)
    code, _, err = entry(probe_checkpoints.main, run, "--output", output, *flags)
    assert code == 0, err
    names = [f"step_0000000{step} {probe}" for step in (1, 2, 3) for probe in ("reconstruction", "linear_probe")]
    assert stages.ended == [*names[:4], "scaling", *names[4:], "scaling"]

    # The curves, over the steps.
    rows = list(csv.DictReader((output / "scaling" / "points.csv").read_text().splitlines()))
    assert {path.stem for path in (output / "scaling").glob("*.svg")} == {"linear_probe_tokenizer_top1-steps"}
    assert [(row["step"], row["x_value"]) for row in rows] == [("1", "1"), ("2", "2"), ("3", "3")]

    # What is measured stays.
    error = refused(
        entry(probe_checkpoints.main, run, "--output", output, *flags, "--linear-probe-set", "probe.epochs=2")
    )
    assert "its stage 'step_00000001 linear_probe' is finished, by another command (now probe.epochs=2" in error
    folder = run / "checkpoints" / "step_00000002"
    manifest = read_manifest(folder)
    manifest["files"]["model.safetensors"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps({**manifest, "digest": json_digest(manifest)}))
    error = refused(entry(probe_checkpoints.main, run, "--output", output, *flags))
    assert "step_00000002 was measured with other weights" in error and "--output" in error


def test_ar_probing_collects_the_errors_of_its_numbers(tmp_path):
    """Beside each number, so that a table and a picture can show them."""
    error = {"gfid": Estimate(3.0, 0.1, 9, "jackknife", ()), "top1": Estimate(0.5, 0.02, 99, "images", ())}
    for name, metrics in (
        ("evaluations/search", {"best_guidance_scale": 1.5, "gfid": 3.0}),
        ("evaluations/val_loss", {"val_loss": 5.0, "val_loss_stderr": 0.1}),
        ("linear_probe_gpt/result", {"top1": 0.5, "val_loss": 1.0}),
    ):
        write_result(tmp_path / f"{name}.json", metrics, {}, error)
    found = collect(tmp_path)
    assert {name: found[name] for name in ("gfid", "val_loss", "val_loss_stderr", "linear_probe_top1")} == {
        "gfid": 3.0, "val_loss": 5.0, "val_loss_stderr": 0.1, "linear_probe_top1": 0.5
    }  # fmt: skip
    assert found["gfid_se"] == 0.1 and found["linear_probe_top1_se"] == 0.02
    assert found["linear_probe_top1_low"] < 0.5 < found["linear_probe_top1_high"]
    assert set(scalars_of(found)) == {"best_guidance_scale", "gfid", "val_loss", "val_loss_stderr", "linear_probe_top1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{images}"], "has no checkpoints; name the folder of a tokenizer's training"),
        (["{tokenizer}", "--steps", "7"], "has no checkpoint of step 7; it has 1"),
        (["{tokenizer}", "--probes", "fid"], "'fid' must be some of reconstruction,linear_probe,ar_probe"),
        (["{tokenizer}", "--steps", "x"], "--steps"),
    ],
)
def test_wrong_calls_are_refused(codes, image_folder, entry, tmp_path, arguments, message):
    arguments = [text.format(images=image_folder, tokenizer=codes[1]) for text in arguments]
    assert message in refused(entry(probe_checkpoints.main, *arguments, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
