"""The doctor names what was done wrong to real tiny runs (config or data changed, never their records), and is silent
about healthy ones.
"""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from PIL import Image

import autoregressive.train
import evaluations.checks
import evaluations.doctor
import tokenizer.train
from engine.config import UserError
from engine.health import warnings_of
from engine.tracker import read_metrics
from evaluations.checks import CHECKS, Evidence, collapse_of, unused_of
from evaluations.data_checks import data_findings
from evaluations.doctor import named, readings
from tokenizer import load_tokenizer
from tokenizer.health import SIGNS

HEALTHY = [
    "loop={device: cpu, steps: 60, log_every: 3, eval_every: 15, save_every: 100}",
    "model.quantizer.vq={codebook_size: 16, codebook_dim: 4, warmup_steps: 20, init: kmeans}",
    "data.global_batch_size=8",
    "data.random_crop=false",
    "data.flip_prob=0",
    "optim.lr=3e-3",
    "loss.entropy_weight=0.02",
    "loss.l1_weight=0.5",
    "ema_decay=0.9",
]
PATCHGAN = "{{name: patchgan, start_step: 2, weight: {}, base_channels: {}, num_layers: 1, norm: {}}}"
CODES = "model.quantizer.vq={{codebook_size: {}, codebook_dim: 4, warmup_steps: {}, init: {}}}"
FAULTS = {  # run -> (what was done wrong, what must be named)
    "no warm-up": ([CODES.format(64, 0, "random"), "optim.lr=3e-2", "loss.entropy_weight=0"], {"codebook collapse"}),
    "too many codes": ([CODES.format(64, 20, "kmeans"), "loss.entropy_weight=0"], {"dead codes"}),
    "commitment": (["loss.commitment_weight=100"], {"commitment imbalance"}),
    "entropy": (["loss.entropy_weight=10"], {"entropy imbalance"}),
    "temperature": (["model.quantizer.vq.entropy_temperature=100"], {"entropy imbalance"}),
    "bf16": (["loop.precision=bf16", CODES.format(2048, 0, "random"), "optim.lr=1e-4"], {"precision flips"}),
    "no picture loss": (
        [
            "loss.l2_weight=1e-4",
            "loss.l1_weight=1e-4",
            "optim.lr=1e-2",
            f"loss.discriminator={PATCHGAN.format(0.1, 64, 'batch')}",
        ],
        {"clipped output"},
    ),
    "too little say": (
        ["optim.lr=1e-2", f"loss.discriminator={PATCHGAN.format(1e-4, 64, 'batch')}"],
        {"overpowering discriminator"},
    ),
    "no discriminator": ([f"loss.discriminator={PATCHGAN.format(1e-12, 16, 'none')}"], {"dead discriminator"}),
    "no rate": (["optim.lr=1e-9"], {"not learning", "learning rate"}),
    "rising rate": (["optim.schedule=linear", "optim.end_lr=3"], {"diverged"}),
    "huge rate": (
        ["optim.lr=1e30", CODES.format(16, 0, "random")],
        {"non-finite steps", "unfinished", "learning rate"},
    ),
    "small batch": (["data.global_batch_size=2", "loop.steps=9"], {"batch size"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, image_folder, world):
    """A folder with the healthy run and its recipe."""
    root = tmp_path_factory.mktemp("doctor")
    train(root, "healthy", image_folder, world)
    recipe = OmegaConf.merge(OmegaConf.create(tiny.TOKENIZER), OmegaConf.from_dotlist(HEALTHY))
    OmegaConf.save(recipe, root / "recipe.yaml")
    return root


def train(root, name, images, world, *changes):
    config = tiny.tokenizer_config(root / name, images, *HEALTHY, *changes)
    try:
        tokenizer.train.train(config, world)
    except UserError as error:
        assert "non-finite" in str(error)
    return root / name


MARGIN = 1.5  # healthy runs stay below 1 / MARGIN of every threshold, faulty ones above MARGIN times theirs


def examine(run, recipe=None) -> dict[str, str]:
    """{name: evidence} of the findings; a reading within the margin of its threshold fails the test."""
    read = readings(Evidence(run, recipe))
    print(run.name, {name: (round(times, 3), text) for name, (times, text) in read.items()})
    found = {name: text for name, text, remedy in named(read) if remedy}
    assert all(any(c.isdigit() for c in text) for text in found.values()), "evidence has numbers"
    return found


def names_of(run, recipe=None) -> set[str]:
    return set(examine(run, recipe))


def test_a_healthy_run_is_left_in_peace(place, entry):
    """No finding, with and without its recipe and its images; exit code 0."""
    assert names_of(place / "healthy") == set() == names_of(place / "healthy", place / "recipe.yaml")
    code, out, _ = entry(evaluations.doctor.main, place, "--data", "--recipe", place / "recipe.yaml")
    assert code == 0 and "step 60 of 60, recipe recipe.yaml: no finding(s)" in out
    assert "warning" not in (place / "healthy" / "log.txt").read_text()


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_is_named(fault, place, image_folder, world):
    """Each run differs from the healthy one by the fault alone."""
    changes, expected = FAULTS[fault]
    run = train(place, fault.replace(" ", "_"), image_folder, world, *changes)
    found = examine(run, place / "recipe.yaml")
    assert expected <= set(found), found
    shutil.rmtree(run)


def test_ranks_that_never_met_are_named(place, image_folder, world, monkeypatch):
    """SLURM started two tasks, and each believes that it is alone; and a resume with two processes."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    run = train(place, "slurm", image_folder, world, "loop.steps=25")
    found = examine(run)
    assert "SLURM started 2 tasks" in found["number of ranks"]
    start = json.loads((run / "starts.jsonl").read_text())
    assert start["processes"] == 1 and start["versions"]["torch"] == torch.__version__.split("+")[0]
    assert isinstance(start["git"]["dirty"], bool) or start["git"]["dirty"] == "unknown"
    assert start["command"] and "hunter2" not in (run / "starts.jsonl").read_text(), "only named variables are kept"
    shutil.rmtree(run)


@pytest.fixture(scope="module")
def codes(place, image_folder, world):
    tiny.write_codes(place / "codes", load_tokenizer(place / "healthy").provenance.fingerprint, num_images=8)
    return place / "codes", place / "healthy"


def test_a_gpt_that_learns_by_heart_is_named(place, codes, tmp_path, world):
    """Eight random images, no dropout: the held-out loss rises. Two looks in, nothing can be said yet."""
    quiet = ["model.token_dropout=0", "model.residual_dropout=0", "model.class_dropout_prob=0"]
    given = [*quiet, "loop.steps=60", "loop.log_every=3", "loop.eval_every=10"]
    autoregressive.train.train(tiny.gpt_config(tmp_path / "gpt", *codes, *given), world)
    assert names_of(tmp_path / "gpt") == {"overfitting"}


def test_the_reference_curve_is_the_measure_of_a_quick_start(place, image_folder, world, monkeypatch):
    """Held against curves at half its losses, the healthy run is off; against its own, or at another length, not."""
    records = [r for r in read_metrics(place / "healthy") if "steps_per_second" in r]

    def curves(share, steps=60):
        points = {str(int(r["step"])): share * r["reconstruction_l2"] for r in records}
        path = place / "reference_curves.json"
        path.write_text(json.dumps({"recipe": {"steps": steps, "metrics": {"reconstruction_l2": points}}}))
        monkeypatch.setattr(evaluations.checks, "CURVES", path)
        return names_of(place / "healthy", place / "recipe.yaml")

    assert (curves(0.5), curves(1.0), curves(0.5, steps=99)) == ({"off the reference curve"}, set(), set())


def test_shipped_curves_name_shipped_recipes():
    """The reference curves are of the quick starts as they are configured now."""
    curves = json.loads(evaluations.checks.CURVES.read_text())
    for name in ("tokenizer", "gpt"):
        recipe = OmegaConf.load(evaluations.checks.CURVES.parent / f"{name}.yaml")
        assert recipe.loop.steps == curves[name]["steps"]
        assert all(str(recipe.loop.steps) in points for points in curves[name]["metrics"].values())


def test_a_recipe_is_found_by_its_model_section(place, tmp_path, entry):
    """A run of the quick start's sizes is measured by the quick start, whatever it is called; others by nothing."""
    assert Evidence(place / "healthy").recipes == []
    options = ["--config", "configs/quickstart/tokenizer.yaml", "--print-config", "optim.lr=3e-3"]
    run = tmp_path / "mine"
    run.mkdir()
    (run / "config.yaml").write_text(entry(tokenizer.train.main, *options)[1])
    evidence = Evidence(run)
    assert [path.name for path, _ in evidence.recipes] == ["tokenizer.yaml"]
    assert "optim.lr=0.003, but 0.0008 in tokenizer.yaml" in str(examine(evidence))


def test_codes_are_judged_by_the_size_of_their_group():
    """One code in use of many is a collapse, few are dead codes, uniform use is neither, whatever the size."""
    for size in (2, 4, 16, 1024):
        even, single = torch.full((size,), 10.0), torch.eye(size)[0] * 80
        assert collapse_of(even, "")[0] < 1 / MARGIN < 0.8 < collapse_of(single, "")[0] and unused_of(even, "")[0] == 0
        assert unused_of(single, "group 1: ")[1].startswith("group 1: ") and unused_of(single, "")[0] >= MARGIN


def test_a_folder_that_is_no_run_is_refused(tmp_path, entry):
    code, _, err = entry(evaluations.doctor.main, tmp_path)
    assert code == 2 and "there is no config.yaml" in err


# ---------------------------------------------------------------------------------------------- images
def copies(train_dir, val_dir):
    for i in range(3):
        shutil.copy(train_dir / "cat" / "001.png", train_dir / "dog" / f"copy{i}.png")


def leak(train_dir, val_dir):
    shutil.copy(val_dir / "cat" / "000.png", train_dir / "cat" / "zzz.png")


def small(train_dir, val_dir):
    for i in range(4):
        Image.fromarray(np.full((4, 4, 3), 9 * i, np.uint8)).save(train_dir / "cat" / f"small{i}.png")


def broken(train_dir, val_dir):
    path = train_dir / "cat" / "003.png"
    path.write_bytes(path.read_bytes()[:40])


def rare(train_dir, val_dir):
    for path in sorted((train_dir / "dog").iterdir())[1:]:
        path.unlink()


DATA = {"duplicate images": copies, "held-out images in training": leak, "tiny images": small}
DATA |= {"broken images": broken, "class imbalance": rare}


@pytest.mark.parametrize("fault", sorted(DATA))
def test_a_fault_of_the_data_is_named(fault, place, image_folder, tmp_path):
    """Exactly the fault that was made, with the file or the class."""
    shutil.copytree(image_folder, tmp_path / "images")
    DATA[fault](tmp_path / "images" / "train", tmp_path / "images" / "val")
    config = Evidence(place / "healthy").config
    config.data.root, config.data.val_root = str(tmp_path / "images" / "train"), str(tmp_path / "images" / "val")
    found = data_findings(config, 1000)
    assert [name for name, _, _ in found] == [fault]
    assert ".png" in found[0][1] or "dog" in found[0][1]


def test_missing_data_is_a_finding_and_no_crash(place):
    config = Evidence(place / "healthy").config
    config.data.root = "/nowhere"
    assert [name for name, _, _ in data_findings(config, 10)] == ["missing data"]


# ---------------------------------------------------------------------------------------------- live
@pytest.mark.parametrize(
    ("now", "before", "said"),
    [
        ({"loss": float("nan")}, {}, "non-finite: loss"),
        ({"skipped_steps": 3.0}, {"skipped_steps": 1.0}, "skipped steps: 2 updates"),
        ({"skipped_steps": 3.0}, {"skipped_steps": 3.0}, None),
        ({"skipped_images": 1.0}, {}, "broken images: 1 unreadable"),
        ({"codebook_perplexity": 10.0}, {"codebook_perplexity": 100.0}, "codebook collapse"),
        ({"codebook_perplexity": 90.0}, {"codebook_perplexity": 100.0}, None),
        ({"discriminator": 0.01}, {"discriminator": 0.02}, "overpowering discriminator"),
        ({"discriminator": 0.01}, {}, None),
        ({"val/clipped_share": 0.4}, {}, "clipped output: 40.0%"),
    ],
)
def test_signs_in_single_records(now, before, said):
    found = warnings_of(now, before, SIGNS)
    assert (len(found) == 1 and said in found[0]) if said else found == []


def test_a_warning_is_in_the_log_while_the_run_goes_on(place, image_folder, world):
    run = train(place, "live", image_folder, world, "optim.lr=1e30", CODES.format(16, 0, "random"))
    assert "warning: skipped steps: 3 updates skipped for a non-finite gradient" in (run / "log.txt").read_text()


def test_every_check_says_why():
    """A docstring with the reason of its threshold, and a remedy."""
    assert len(CHECKS) >= 12 and all(check.__doc__ and remedy for check, remedy in CHECKS.values())
