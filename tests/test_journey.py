"""The whole journey on a few real digits: the commands of the quick start, in this process, with every loss on."""

import importlib
import json
import logging
import math
import re
import sys
from pathlib import Path

import mini
import numpy as np
import pytest
import torch
from PIL import Image

from autoregressive import generate, load_gpt
from autoregressive.codes import CodeStore
from autoregressive.guidance import Guidance
from autoregressive.loading import require_pair
from autoregressive.sampling import seeded_draw
from engine import pipeline as stages
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.data.images import image_tensor, to_float, to_uint8
from engine.data.packaged import ArraySource, Mnist5k
from engine.data.sources import SOURCES
from engine.run_log import read_metrics
from evaluations.results import read_result
from tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
FEWER = {  # arguments that a stage gets on top of its own: six updates of everything
    "tokenizer": [
        "loop.steps=6",
        "loop.log_every=1",
        "loop.eval_every=3",
        "loop.save_every=3",
        "data.global_batch_size=8",
        "validation.num_images=10",
        "model.quantizer.vq={codebook_size: 32, warmup_steps: 2}",
        "loss.shortcut.end_step=4",
        "loss.discriminator.start_step=5",
    ],
    "gpt": ["loop.steps=6", "loop.log_every=1", "model.vocab_size=32", "validation.num_images=10"],
    "classifier": ["loop.steps=6", "loop.log_every=3"],
    "reconstruction": ["--force"],
    "generation": ["--num-fid-samples", "20", "--force"],
}


def digits(config, split: str) -> ArraySource:
    """The first 40 training and 12 held-out digits."""
    whole, count = Mnist5k.read(split), {"train": 40, "val": 12}[split]
    return ArraySource("mnist5k", whole.images[:count], whole.labels[:count], whole.class_names)


def call(module: str, *arguments: str) -> None:
    """An entry as `python -m module arguments` would run it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        patch.setattr(SOURCES["mnist5k"], "open", digits)
        patch.chdir(ROOT)
        try:
            entry = importlib.import_module(module)
            if hasattr(entry, "__path__"):  # `python -m` of a package runs its __main__
                entry = importlib.import_module(f"{module}.__main__")
            entry.main()
        finally:
            root.handlers[:], root.level = handlers, level


def start(runs_dir: Path, ran: list[str], *flags: str, fewer: dict[str, list[str]] = FEWER) -> None:
    """`quickstart.sh --short`, in this process."""
    run_stages_here(ran, fewer, "evaluations.quickstart", "--short", "--runs-dir", runs_dir, *flags)


def run_stages_here(ran: list[str], fewer: dict[str, list[str]], module: str, *arguments: str) -> None:
    """A pipeline each of whose stages runs here, instead of in a process of its own; `ran` gets their names."""

    def in_this_process(stage, log):
        ran.append(stage.name)
        module = stage.command.index("-m") + 1
        assert stage.command[module - 3 : module] == ["bash", str(ROOT / "scripts/launch.sh"), "-m"]
        call(*stage.command[module:], *fewer.get(stage.name, []))
        log.note(stage.name, 1.25, 1.0, done=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_run", in_this_process)
        call(module, *arguments)


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """The run folder, and the stages in the order in which they ran."""
    runs, ran = tmp_path_factory.mktemp("journey"), []
    start(runs, ran)
    return runs / "quickstart-short", ran


@pytest.fixture(scope="module")
def tokenizer(journey):
    return load_tokenizer(journey[0] / "tokenizer")


@pytest.fixture(scope="module")
def gpt(journey):
    return load_gpt(journey[0] / "gpt")


def test_all_stages_run_in_order_and_a_second_call_repeats_none(journey):
    """Results and report stand at the end; the same command finds everything done, and shows it again."""
    run, ran = journey
    assert ran == ["tokenizer", "codes", "gpt", "classifier", "reconstruction", "generation", "report"]
    before, again = json.loads((run / "results.json").read_text()), []
    start(run.parent, again)
    after = json.loads((run / "results.json").read_text())
    assert again == ["report"] and before.pop("seconds").keys() == after.pop("seconds").keys() and after == before
    assert [p.name for p in run.parent.iterdir()] == [run.name]


def test_its_networks_are_shipped_in_half_precision(journey, tmp_path):
    """The rounded ones are measured anew by the stages of the quick start; their cards tell both results."""
    run, ran = journey[0], []
    run_stages_here(ran, FEWER, "evaluations.ship", f"digits={run}", "--output", tmp_path)
    assert ran == ["codes", "reconstruction", "generation"]
    shipped, trained = load_tokenizer(tmp_path / "digits"), load_tokenizer(run)
    assert shipped.provenance.stamp["rounded_from"] == trained.provenance.fingerprint
    require_pair(load_gpt(tmp_path / "digits"), shipped)
    card = (tmp_path / "digits" / "tokenizer" / "README.md").read_text(encoding="utf-8")
    assert shipped.provenance.fingerprint in card and "| PSNR, dB |" in card
    assert re.search(r"Rounding changed [\d.]+% of the codes of the images \(train\)", card)
    assert str(tmp_path) not in card and str(run) not in card


def test_results_have_the_promised_keys_and_ranges(journey):
    """Fractions in 0..1, decibels, seconds by stage; equal to what the evaluations wrote."""
    run, _ = journey
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {
        "psnr", "codebook_usage", "codebook_size", "num_tokens", "frechet_lite0", "label_agreement",
        "classifier_accuracy", "distinct", "memorized", "guidance_scale", "seconds", "cpu_seconds", "forced",
    }  # fmt: skip
    assert set(results["frechet_lite0"]) == {"real", "reconstruction", "generated", "noise"}
    assert results["seconds"] == dict.fromkeys(
        ("tokenizer", "codes", "gpt", "classifier", "reconstruction", "generation", "report"), 1.2
    )
    assert (results["codebook_size"], results["num_tokens"], results["guidance_scale"]) == (32, 16, 2.0)
    shares = ("codebook_usage", "label_agreement", "classifier_accuracy", "distinct", "memorized")
    assert all(0 <= results[name] <= 1 for name in shares)
    assert 0 < results["psnr"] < 50
    frechet = results["frechet_lite0"]
    assert 0 < frechet["real"] < frechet["reconstruction"] and min(frechet.values()) == frechet["real"]
    made = read_result(run / "evaluations" / "reconstruction.json")
    assert made["metrics"]["psnr"] == results["psnr"] and made["protocol"]["num_images"] == 12
    drawn = read_result(run / "evaluations" / "generation.json")
    assert drawn["metrics"]["frechet_lite0_generated"] == frechet["generated"]
    assert drawn["protocol"]["num_images"] == 20


def test_every_loss_takes_part_in_the_updates_that_the_table_says(journey):
    """The table in the log, and the terms that each record of metrics.jsonl has."""
    run, _ = journey
    log = (run / "tokenizer" / "log.txt").read_text()
    table = log.partition("loss terms")[2].partition("frozen network")[0].splitlines()[1:]
    rows = {row.split()[0]: row.split()[2:] for row in table if len(row.split()) == 4}
    first_last = {name: (int(a), 6 if b == "end" else int(b)) for name, (a, b) in rows.items()}
    assert first_last == {
        "reconstruction_l2": (1, 6), "reconstruction_l1": (1, 6), "perceptual": (1, 6), "semantic": (1, 6),
        "codebook": (3, 6), "commitment": (3, 6), "entropy": (3, 6), "adversarial": (5, 6),
        "shortcut_l2": (1, 3), "shortcut_l1": (1, 3), "shortcut_perceptual": (1, 3), "shortcut_feature": (1, 3),
    }  # fmt: skip
    records = [r for r in read_metrics(run / "tokenizer") if "loss" in r]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    for record in records:
        active = {name for name, (first, last) in first_last.items() if first <= record["step"] <= last}
        assert first_last.keys() & record.keys() == active
        assert ("discriminator" in record) == (record["step"] >= 5)
        assert all(math.isfinite(value) for value in record.values())
    looks = [r for r in read_metrics(run / "tokenizer") if "val/psnr" in r]
    assert [r["step"] for r in looks] == [3, 6] and all("val_ema/psnr" in r for r in looks)


def test_a_run_folder_has_what_is_promised(journey):
    """Config, log, metrics, commit, checkpoints, image grids; the checkpoint says which networks it saw."""
    run, _ = journey
    for name in ("config.yaml", "log.txt", "metrics.jsonl", "git_sha.txt", "samples/val_00000006.png"):
        assert (run / "tokenizer" / name).is_file(), name
    folders = checkpoint_folders(run / "tokenizer")
    assert [read_manifest(f)["step"] for f in folders] == [3, 6]
    stamp = read_manifest(folders[-1])["stamp"]
    assert stamp["networks"].keys() == {"efficientnet_lite0"} and "weights" not in stamp, "packaged weights are real"
    grid = Image.open(run / "tokenizer" / "samples" / "val_00000006.png")
    width, height = 3 * (8 * 34 + 2), 3 * (2 * 34 + 2)
    assert width < grid.width and height < grid.height < 2 * height, "3 times, beside names, below a caption"


def test_codes_are_those_of_the_tokenizer(journey, tokenizer):
    """Of its averaged weights, for both splits."""
    run, _ = journey
    assert tokenizer.provenance.weights == "ema"
    for split, count in (("train", 40), ("val", 12)):
        store, source = CodeStore(run / "codes", split), digits(None, split)
        assert len(store) == count and store.manifest.fingerprint == tokenizer.provenance.fingerprint
        images = torch.stack([image_tensor(source.image(i)) for i in range(count)])
        expected = tokenizer.encode(to_float(images)).indices.numpy()
        assert (store.codes[:, 0] == expected).mean() > 0.995, "a tie may fall otherwise in another batch"
        assert store.labels.tolist() == source.labels.tolist()


def test_the_gpt_starts_at_the_logarithm_of_the_codebook(journey, gpt, tokenizer):
    run, _ = journey
    losses = [r["loss"] for r in read_metrics(run / "gpt") if "loss" in r]
    assert losses[0] == pytest.approx(math.log(32), rel=1e-5) and losses[-1] < losses[0]
    assert gpt.provenance.stamp["tokenizer_fingerprint"] == tokenizer.provenance.fingerprint
    assert (gpt.codebook_sizes, gpt.num_tokens, gpt.num_classes) == ((32,), 16, 10)


def test_the_same_training_command_again_changes_nothing(journey):
    """A finished run is loaded and left: no record, no checkpoint, no other weights."""
    run, _ = journey
    folder = run / "tokenizer"
    before = (folder / "metrics.jsonl").read_text(), load_tokenizer(folder).provenance.fingerprint
    configs = [part for name in ("tokenizer", "full") for part in ("--config", f"configs/quickstart/{name}.yaml")]
    call("tokenizer.train", *configs, f"loop.run_dir={folder}", *FEWER["tokenizer"], "loop.eval_every=0")
    assert ((folder / "metrics.jsonl").read_text(), load_tokenizer(folder).provenance.fingerprint) == before


def test_the_report_shows_samples_beside_their_neighbours(journey):
    """One file without outside references: curves, 12 pairs, 8 samples of each of 10 digits with their neighbours, the
    map of codes.
    """
    run, _ = journey
    page = (run / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    previews = len(list(run.glob("*/samples/*.png")))  # pictures during training
    assert previews >= 4 and page.count("<img") == 2 * 12 + 2 * 80 + 1 + previews
    assert page.count("<svg") >= 6 and "No " not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
    assert Image.open(run / "samples.png").width > 8 * 32
    with np.load(run / "evaluations" / "generation.npz") as stored:
        nearest = stored["nearest"]
    training = {image_tensor(digits(None, "train").image(i)).numpy().tobytes() for i in range(40)}
    assert all(image.tobytes() in training for image in nearest)


def test_sample_writes_the_images_of_their_classes(journey, tokenizer, tmp_path):
    """Image i of class c is sample number c * 2^32 + i, whatever the batch size and the number of images."""
    gpt = load_gpt(journey[0] / "gpt")
    gpt.class_embedding.weight *= 100  # so that six updates are enough to tell classes apart
    gpt.output.weight *= 10_000
    export = mini.export(tmp_path / "gpt", gpt.provenance.config, gpt)
    given = ["--vq-ckpt", journey[0] / "tokenizer", "--gpt-ckpt", export, "--class-idx", "3,7", "--qual-num", "6"]
    for size in (2, 32):
        flags = ["--cfg-scale", "1.5", "--per-proc-batch-size", size, "--sample-dir", tmp_path / str(size)]
        call("autoregressive.sample", *given, *flags)
    for label in (3, 7):
        ids = torch.arange(3) + 2**32 * label
        tokens, other = (
            generate(gpt, torch.full((3,), c), draw=seeded_draw(0, ids, 16), guidance=Guidance(scale=1.5))
            for c in (label, 10 - label)
        )
        assert not torch.equal(tokens, other), "the class makes no difference here"
        expected = to_uint8(tokenizer.decode_indices(tokens)).int()
        for size in (2, 32):
            folder = tmp_path / str(size) / f"class_{label}"
            assert sorted(p.name for p in folder.iterdir()) == ["000000.png", "000001.png", "000002.png", "grid.png"]
            for i in range(3):
                image = image_tensor(Image.open(folder / f"{i:06d}.png")).int()
                assert (image - expected[i]).abs().max() <= 1


def test_reconstruct_writes_pairs(journey, tokenizer, tmp_path):
    """NNNNNN_gt.png is the original, NNNNNN.png what its codes give; a grid shows both."""
    run, _ = journey
    flags = ["--num-images", "5", "--sample-dir", tmp_path, "--per-proc-batch-size", "2"]
    call("tokenizer.reconstruct", "--vq-ckpt", run / "tokenizer", "--data", "mnist5k", *flags)
    source = digits(None, "val")
    originals = torch.stack([image_tensor(source.image(i)) for i in range(5)])
    expected = to_uint8(tokenizer.decode_indices(tokenizer.encode(to_float(originals)).indices)).int()
    for i in range(5):
        assert torch.equal(image_tensor(Image.open(tmp_path / f"{i:06d}_gt.png")), originals[i])
        assert (image_tensor(Image.open(tmp_path / f"{i:06d}.png")).int() - expected[i]).abs().max() <= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["grid.png", "written.json", *(f"{i:06d}{kind}.png" for i in range(5) for kind in ("", "_gt"))]
    )


ENTRIES = [
    f"{path.relative_to(ROOT).with_suffix('')}".replace("/", ".")
    for package in ("tokenizer", "autoregressive", "evaluations")
    for path in sorted((ROOT / package).rglob("*.py"))
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", ENTRIES)
def test_help_of_every_entry_shows_an_example(module, capsys):
    """It exits with 0, and one of its commands names the entry or the script that starts it."""
    with pytest.raises(SystemExit) as stop:
        call(module, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage:" in text
    shown = re.findall(r"(?:python -m (\S+)|bash (scripts/\S+\.sh))", text)
    assert any(name == module.removesuffix(".__main__") or script for name, script in shown), "no example"
    assert all((ROOT / script).is_file() for _, script in shown if script)


BATCHED = {
    "tokenizer.reconstruct": "--per-proc-batch-size",
    "autoregressive.extract_codes": "--batch-size",
    "autoregressive.sample": "--qual-num",
    "evaluations.generation": "--per-proc-batch-size",
    "evaluations.reconstruction": "--per-proc-batch-size",
}


@pytest.mark.parametrize("module", BATCHED)
@pytest.mark.parametrize("count", ["0", "-2", "many", "1.5"])
def test_a_count_that_is_none_is_refused(module, count, capsys):
    """By the parser, with the flag and what it accepts; never by a traceback later."""
    with pytest.raises(SystemExit) as stop:
        call(module, f"{BATCHED[module]}={count}")
    assert stop.value.code == 2
    assert f"{BATCHED[module]}: '{count}' is not a whole number from 1" in capsys.readouterr().err


def test_the_public_face_stays_what_it_is():
    """`autoregressive.generate` is the function, also once its module of the same name is imported."""
    import autoregressive

    for _ in range(2):
        importlib.import_module("autoregressive.generate")
        from autoregressive import generate as again

        assert again is generate is autoregressive.generate and callable(again)
    assert autoregressive.load_gpt is load_gpt
    with pytest.raises(AttributeError, match="has no attribute 'sample_everything'"):
        _ = autoregressive.sample_everything
