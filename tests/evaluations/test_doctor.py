"""The doctor names what was done wrong to real tiny runs (config or data changed, never their records), and is silent
about healthy ones.
"""

import json
import re
import shutil
from types import SimpleNamespace

import mini
import numpy as np
import probes
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from PIL import Image
from recipes import CONFIGS
from reference_curves import curve_of, text_of

import autoregressive.train
import evaluations.doctor.__main__
import evaluations.doctor.evidence
import tokenizer.train
from engine.alerts import alerts_for
from engine.config import load_config, read_yaml, save_config
from engine.data.sources import SOURCES
from engine.messages import UserError
from engine.run_log import read_metrics
from evaluations.doctor.__main__ import examine, findings_of, print_run
from evaluations.doctor.checks import CHECKS
from evaluations.doctor.codebook import codebook_collapse, collapse_of, dead_codes, unused_of
from evaluations.doctor.data import data_findings
from evaluations.doctor.evidence import RunEvidence
from evaluations.linear_probe import train as train_probe
from tokenizer import load_tokenizer
from tokenizer.training.alerts import ALERTS
from tokenizer.training.phases import phases_of

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
PATCHGAN = "{{name: patchgan, start_step: 2, weight: {}, patchgan: {{base_channels: {}, num_layers: 1, norm: {}}}}}"
CODES = "model.quantizer.vq={{codebook_size: {}, codebook_dim: 4, warmup_steps: {}, init: {}}}"
FAULTS = {  # run -> (what was done wrong, what must be named)
    "no warm-up": ([CODES.format(64, 0, "random"), "optim.lr=3e-2", "loss.entropy_weight=0"], {"codebook collapse"}),
    "too many codes": ([CODES.format(64, 20, "kmeans"), "loss.entropy_weight=0"], {"dead codes"}),
    "commitment": (["loss.commitment_weight=100"], {"commitment imbalance"}),
    "entropy": (["loss.entropy_weight=10"], {"entropy imbalance"}),
    "temperature": (["model.quantizer.vq.entropy_temperature=100"], {"entropy imbalance"}),
    "bf16": (
        ["loop.precision=bf16", CODES.format(4096, 0, "random"), "model.quantizer.vq.codebook_dim=2"],
        {"precision flips"},
    ),
    "no picture loss": (
        [
            "loss.l2_weight=1e-4",
            "loss.l1_weight=1e-4",
            "loss.entropy_weight=0",
            "optim.lr=3e-2",
            f"loss.discriminator={PATCHGAN.format(10, 64, 'batch')}",
        ],
        {"clipped output"},
    ),
    "too little say": (
        ["optim.lr=1e-2", f"loss.discriminator={PATCHGAN.format(1e-4, 64, 'batch')}"],
        {"overpowering discriminator"},
    ),
    "no discriminator": ([f"loss.discriminator={PATCHGAN.format(1e-12, 16, 'none')}"], {"dead discriminator"}),
    "no rate": (["optim.lr=1e-9"], {"not learning", "learning rate"}),
    "rising rate": (["optim.schedule=linear", "optim.hold_fraction=0.7", "optim.end_lr=100"], {"diverged"}),
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


MARGIN = 1.5  # healthy runs stay below 1 / MARGIN of every threshold, what a fault must show is above MARGIN times its


def findings(run, recipe=None, expected=frozenset()) -> dict[str, str]:
    """{name: evidence} of the findings; those `expected` must be there, with room to spare."""
    evidence = RunEvidence(run, recipe)
    severities = examine(evidence)
    missed = {name: severities.get(name) for name in expected if severities.get(name, (0.0, ""))[0] < MARGIN}
    assert not missed, missed
    found = {name: text for name, text, remedy in findings_of(evidence, severities) if remedy}
    assert all(any(c.isdigit() for c in text) for text in found.values()), "evidence has numbers"
    return found


def assert_healthy(run, recipe=None) -> None:
    """No severity comes near 1."""
    severities = examine(RunEvidence(run, recipe))
    near = {name: severity for name, severity in severities.items() if severity.ratio >= 1 / MARGIN}
    assert severities and not near, near


def names_of(run, recipe=None) -> set[str]:
    return set(findings(run, recipe))


def test_a_healthy_run_is_left_in_peace(place, entry):
    """No finding and none near, with and without its recipe and its images; exit code 0; all readings on demand."""
    assert_healthy(place / "healthy")
    assert_healthy(place / "healthy", place / "recipe.yaml")
    code, out, _ = entry(evaluations.doctor.__main__.main, place, "--data", "--recipe", place / "recipe.yaml")
    assert code == 0 and "step 60 of 60, recipe recipe.yaml: no findings" in out and "perplexity" not in out
    shown = entry(evaluations.doctor.__main__.main, place, "--all")[1]
    assert "codebook collapse: perplexity" in shown
    assert all(f" {name}: " in shown for name in CHECKS), "every check is judged, or said not to be"
    assert "not judged precision flips: it needs a tokenizer trained in bf16" in shown
    assert "warning" not in (place / "healthy" / "log.txt").read_text()


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_fault_is_named(fault, place, image_folder, world):
    """Each run differs from the healthy one by the fault alone."""
    changes, expected = FAULTS[fault]
    run = train(place, fault.replace(" ", "_"), image_folder, world, *changes)
    findings(run, place / "recipe.yaml", expected)
    shutil.rmtree(run)


def test_an_early_end_that_was_asked_for_is_no_finding(place, tmp_path, capsys):
    """`loop.stop_at`; the same run without it is unfinished."""
    for name, stop_at in (("asked", 60), ("broken", 0)):
        run = shutil.copytree(place / "healthy", tmp_path / name)
        config = OmegaConf.load(run / "config.yaml")
        config.loop.steps, config.loop.stop_at = 100, stop_at
        OmegaConf.save(config, run / "config.yaml")
        assert ("unfinished" in names_of(run)) == (name == "broken")
    print_run(RunEvidence(tmp_path / "asked"), [], {}, False)
    assert "step 60 of 100 (loop.stop_at=60)" in capsys.readouterr().out


def test_scales_that_share_the_codes_are_judged_each():
    """One that always has the same code is named; of a book with dead codes it is told how many each scale leaves."""
    uniform, single, half = torch.ones(256), torch.eye(256)[0] * 900, (torch.arange(256) < 128) * 9.0
    tokenizer = SimpleNamespace(quantizer=SimpleNamespace(num_groups=1))
    run = SimpleNamespace(tokenizer=tokenizer, is_early=False, code_counts={0: uniform})
    run.scale_counts = {1: single, 2: uniform}
    collapse = codebook_collapse(run)
    assert collapse.evidence == "scale 1 x 1: perplexity 1.0 of 256 codes" and collapse.ratio == pytest.approx(4)
    run.code_counts, run.scale_counts = {0: half}, {1: single, 2: half}
    assert dead_codes(run).evidence == "50% of 256 codes unused (by scale: 1 x 1 100%, 2 x 2 50%)"
    run.scale_counts = {}
    assert dead_codes(run).evidence == "50% of 256 codes unused" and codebook_collapse(run).ratio < 1


SHORT = ["loop={device: cpu, steps: 60, log_every: 3, eval_every: 0, save_every: 100}", *HEALTHY[2:5]]
SHORT += ["loss={l2_weight: 1, l1_weight: 0.5}", "optim={lr: 3e-3, max_grad_norm: 1}"]
GQ = "model.quantizer.gq={{num_groups: 4, group_dim: 4{}}}"
OTHER = "model.quantizer={{name: {0}, {0}: {1}}}"
CODES_4D = "{{codebook_size: {}, codebook_dim: 4{}}}"
KMEANS = ", warmup_steps: 20, init: kmeans, l2_norm: true"
CUT, UNSURE = ", codebook_entropy: per_group, index_bits: [2, 2, 12]", ", entropy_temperature: 1000"
QUANTIZERS = {  # name -> (a healthy run, (what was done wrong beside it, what must be named) ...)
    "gq": (
        [GQ.format(", codebook_entropy: per_group"), "loss.entropy_weight=0.1"],
        ([GQ.format(CUT), "loss.entropy_weight=0.005"], "codebook collapse"),
        ([GQ.format(UNSURE), "loop.steps=12"], "entropy imbalance"),
        ([GQ.format(UNSURE + ", codebook_entropy: per_group"), "loop.steps=12"], "entropy imbalance"),
    ),
    "fsq": (
        [OTHER.format("fsq", "{levels: [5, 3]}"), "optim.lr=1e-2"],
        ([OTHER.format("fsq", "{levels: [8, 8, 8]}"), "optim.lr=3e-2"], "dead codes"),
    ),
    "ibq": (
        [OTHER.format("ibq", CODES_4D.format(16, KMEANS)), "loss.entropy_weight=0.02"],
        (
            [OTHER.format("ibq", CODES_4D.format(256, "")), "loss.entropy_weight=0", "optim.lr=3e-2"],
            "codebook collapse",
        ),
        ([OTHER.format("ibq", CODES_4D.format(16, UNSURE)), "loop.steps=12"], "entropy imbalance"),
    ),
    "simvq": (
        [OTHER.format("simvq", CODES_4D.format(16, "")), "loss.entropy_weight=0.02"],
        ([OTHER.format("simvq", CODES_4D.format(1900, "")), "loss.entropy_weight=0"], "dead codes"),
        ([OTHER.format("simvq", CODES_4D.format(16, UNSURE)), "loop.steps=12"], "entropy imbalance"),
    ),
}


# Codebooks of other names have the faults of vq's.
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in ("ibq", "simvq") else []) for n in sorted(QUANTIZERS)]
)
def test_codes_of_every_quantizer_are_looked_at(name, tmp_path, image_folder, world):
    """Collapsed, dead and undecided codes of WeTok runs are named, those of a healthy one not; of groups, the one."""
    base = OmegaConf.create(tiny.WETOK)
    if name != "gq":
        del base.model.quantizer  # an unused section is an error
    healthy, *faults = QUANTIZERS[name]
    for number, (changes, expected) in enumerate([([], None), *faults]):
        changed = {change.partition("=")[0] for change in changes}
        own = [*SHORT, *(h for h in healthy if h.partition("=")[0] not in changed), *changes]
        config = tiny.tokenizer_config(tmp_path / str(number), image_folder, *own, base=OmegaConf.to_yaml(base))
        tokenizer.train.train(config, world)
        if expected is None:
            assert_healthy(tmp_path / "0")
        else:
            evidence = findings(tmp_path / str(number), expected={expected})[expected]
            if "[2, 2, 12]" in str(changes):
                assert "group 2: perplexity" in evidence and "group 0" not in evidence and "group 1" not in evidence


def test_ranks_that_never_met_are_named(place, image_folder, world, monkeypatch):
    """SLURM started two tasks, each believes that it is alone; eight processes were asked for without the launcher."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    run = train(place, "slurm", image_folder, world, "loop.steps=25")
    assert "SLURM started 2 tasks" in findings(run)["number of ranks"]
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setenv("NPROC_PER_NODE", "8")
    train(place, "slurm", image_folder, world, "loop.steps=25")
    assert "NPROC_PER_NODE=8 asks for as many processes, but 1 ran" in findings(run)["number of ranks"]
    start = json.loads((run / "starts.jsonl").read_text().splitlines()[0])
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


def test_the_reference_curve_is_the_measure_of_a_quick_start(codes, tmp_path, world, monkeypatch):
    """Held against the curves of another seed a healthy run is normal; at a hundredth of the rate it is off, where the
    run has the same length.
    """

    quiet = ["model.token_dropout=0", "model.residual_dropout=0", "model.class_dropout_prob=0"]

    def run(name, *changes):
        config = tiny.gpt_config(tmp_path / name, *codes, *quiet, "loop.steps=120", "loop.log_every=6", *changes)
        autoregressive.train.train(config, world)
        return RunEvidence(tmp_path / name, recipe)

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny.GPT)
    (tmp_path / "curves.json").write_text(text_of({"recipe.yaml": curve_of(run("seed 0"))}))
    monkeypatch.setattr(evaluations.doctor.evidence, "CURVES", tmp_path / "curves.json")
    off = "off the reference curve"
    assert examine(run("seed 1", "loop.seed=1"))[off][0] < 1 / MARGIN
    assert examine(run("slow", "optim.lr=1e-4"))[off][0] > MARGIN
    assert off not in examine(run("longer", "optim.lr=1e-4", "loop.steps=126"))


def test_shipped_curves_name_shipped_recipes():
    """The reference curves are of the quick starts as they are configured now, phase by phase."""
    curves = json.loads(evaluations.doctor.evidence.CURVES.read_text())
    networks = ("classifier", "tokenizer", "gpt", "wetok/tokenizer", "wetok/gpt")
    found = set()
    for name in (f"quickstart/{network}.yaml" for network in networks):
        recipe = read_yaml(CONFIGS / name)
        for number, phase in enumerate(recipe.get("phases", [recipe.loop]), start=1):
            key = f"{name} phase_{number}" if "phases" in recipe else name
            curve = curves[key]
            assert (curve["steps"], curve["seed"], curve["at"][-1]) == (phase.steps, 0, phase.steps)
            assert all(len(values) == len(curve["at"]) for values in curve["metrics"].values())
            found.add(key)
    assert found == set(curves) - {"made by"}


def test_runs_in_phases_are_looked_at_phase_by_phase(tmp_path, image_folder, world, entry):
    """A folder above is enough; each phase is measured by its own part of the recipe. Fine-tuning may learn little."""
    phases = "phases=[{{steps: 8, lr: 3e-3}}, {{steps: 8, lr: {}, generative_decoder: true}}]"
    own = ["loop.run_dir=unused", phases.format("3e-4")]
    OmegaConf.save(OmegaConf.merge(OmegaConf.create(tiny.WETOK), OmegaConf.from_dotlist(own)), tmp_path / "recipe.yaml")
    for name, rate in (("as it should be", "3e-4"), ("too fast", "3e-3")):
        run = tmp_path / name / "tokenizer"
        config = tiny.tokenizer_config(run, image_folder, phases.format(rate), base=tiny.WETOK)
        tokenizer.train.train(config, world)
    _, out, _ = entry(evaluations.doctor.__main__.main, tmp_path, "--recipe", tmp_path / "recipe.yaml")
    assert [f"step 8 of 8, recipe recipe.yaml phase_{n}" in out for n in (1, 2, 3)] == [True, True, False]
    assert out.count("phase_") == 9 and out.count("learning rate: ") == 1, out
    assert "learning rate: optim.lr=0.003; recipe.yaml phase_2 has 0.0003" in out
    assert "not learning" not in examine(RunEvidence(tmp_path / "too fast" / "tokenizer" / "phase_2"))


@pytest.mark.parametrize(
    "name",
    ["gpt/GPT_B256", "vq/VQ_SS256", "vq/ablation/epochs_40", "wetok/WeTok_192", "wetok/ablation/channels_256_blocks_4"],
)
def test_a_shipped_recipe_is_no_mismatch(name, tmp_path, monkeypatch):
    """The configs of shipped recipes, overlays and phases too, are measured by themselves or by their base.

    Recipes whose `model` section is short were measured by nothing, so a GPT-B with a wrong rate was not named.
    """
    monkeypatch.setenv("IMGNET_ROOT", "imagenet")
    is_gpt = name.startswith("gpt")
    config = load_config(
        autoregressive.train.GPTTrainConfig if is_gpt else tokenizer.train.TokenizerTrainConfig,
        [CONFIGS / f"{name}.yaml"],
    )
    configs = [config] if is_gpt else phases_of(config)
    for number, own in enumerate(configs, start=1):
        folder = tmp_path / (f"phase_{number}" if len(configs) > 1 else "run")
        folder.mkdir()
        save_config(own, folder / "config.yaml")
        run = RunEvidence(folder)
        assert run.recipes
        assert all((CHECKS[key].severity(run) or (0.0,))[0] == 0 for key in ("learning rate", "batch size"))


def test_of_a_probe_the_best_head_is_judged(tmp_path, world, monkeypatch):
    """Heads at high rates diverge by design and are nobody's fault; that all diverge is one."""
    monkeypatch.setattr(SOURCES["mnist5k"], "open", lambda config, split: probes.IMAGES[split])
    mini.export_networks(tmp_path)
    train_probe(probes.config_of(tmp_path, tmp_path / "probe", "probe.base_lrs=[1.0,1e30]"), world)
    assert any("loss/1e+30" in r and not np.isfinite(r["loss/1e+30"]) for r in read_metrics(tmp_path / "probe"))
    assert_healthy(tmp_path / "probe")
    with pytest.raises(UserError, match="all heads diverged"):
        train_probe(probes.config_of(tmp_path, tmp_path / "none", "probe.base_lrs=[1e30]"), world)
    assert "not finite: loss" in findings(tmp_path / "none")["non-finite steps"]


def test_a_recipe_is_found_by_its_model_section(place, tmp_path, entry):
    """A run of the quick start's sizes is measured by the quick start, whatever it is called; others by nothing."""
    assert RunEvidence(place / "healthy").recipes == []
    options = ["--config", "configs/quickstart/tokenizer.yaml", "--print-config", "optim.lr=3e-3"]
    run = tmp_path / "mine"
    run.mkdir()
    (run / "config.yaml").write_text(entry(tokenizer.train.main, *options)[1])
    evidence = RunEvidence(run)
    assert [recipe.title for recipe in evidence.recipes] == ["quickstart/tokenizer.yaml"]
    assert "optim.lr=0.003; quickstart/tokenizer.yaml has 0.0008" in str(examine(evidence)["learning rate"])


def test_codes_are_judged_by_the_size_of_their_group():
    """One code in use of many is a collapse, few are dead codes, uniform use is neither, whatever the size."""
    for size in (2, 4, 16, 1024):
        even, single = torch.full((size,), 10.0), torch.eye(size)[0] * 80
        assert collapse_of(even, "")[0] < 1 / MARGIN < 0.8 < collapse_of(single, "")[0] and unused_of(even, "")[0] == 0
        assert unused_of(single, "group 1: ")[1].startswith("group 1: ") and unused_of(single, "")[0] >= MARGIN


def test_a_folder_that_is_no_run_is_refused(tmp_path, entry):
    code, _, err = entry(evaluations.doctor.__main__.main, tmp_path)
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
    tiny.write_images(train_dir / "more", per_class=8, seed=5, classes=("cat",))
    for path in (train_dir / "more" / "cat").iterdir():
        path.rename(train_dir / "cat" / f"more_{path.name}")
    shutil.rmtree(train_dir / "more")
    for path in sorted((train_dir / "dog").iterdir())[1:]:
        path.unlink()


DATA = {"duplicate images": copies, "held-out images in training": leak, "tiny images": small}
DATA |= {"broken images": broken, "class imbalance": rare}


@pytest.mark.parametrize("fault", sorted(DATA))
def test_a_fault_of_the_data_is_named(fault, place, image_folder, tmp_path):
    """Exactly the fault that was made, with the file or the class."""
    shutil.copytree(image_folder, tmp_path / "images")
    DATA[fault](tmp_path / "images" / "train", tmp_path / "images" / "val")
    config = RunEvidence(place / "healthy").config
    config.data.root, config.data.val_root = str(tmp_path / "images" / "train"), str(tmp_path / "images" / "val")
    found = data_findings(config, 1000)
    assert [name for name, _, _ in found] == [fault]
    assert ".png" in found[0][1] or "dog" in found[0][1]


def test_missing_data_is_a_finding_and_no_crash(place):
    config = RunEvidence(place / "healthy").config
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
        ({"codebook_usage_group_3": 0.4}, {"codebook_usage_group_3": 1.0}, "collapse: codebook_usage_group_3 fell"),
        ({"discriminator": 0.01}, {"discriminator": 0.02}, "overpowering discriminator"),
        ({"discriminator": 0.01}, {}, None),
        ({"val/clipped_share": 0.4}, {}, "clipped output: 40.0%"),
    ],
)
def test_alerts_of_single_records(now, before, said):
    found = alerts_for(now, before, ALERTS)
    assert (len(found) == 1 and said in found[0]) if said else found == []


def test_a_warning_is_in_the_log_while_the_run_goes_on(place, image_folder, world):
    run = train(place, "live", image_folder, world, "optim.lr=1e30", CODES.format(16, 0, "random"))
    assert "warning: skipped steps: 3 updates skipped for a non-finite gradient" in (run / "log.txt").read_text()


def test_remedies_name_only_what_the_run_has(place, tmp_path, image_folder, world):
    """FSQ has neither k-means nor an entropy loss, a GPT no quantizer; whatever the run, there is some advice."""
    base = OmegaConf.create(tiny.WETOK)
    del base.model.quantizer
    fsq = [OTHER.format("fsq", "{levels: [5, 3]}"), "loss.entropy_weight=0", "loop.steps=6"]
    config = tiny.tokenizer_config(tmp_path / "fsq", image_folder, *SHORT, *fsq, base=OmegaConf.to_yaml(base))
    tokenizer.train.train(config, world)
    runs = {"vq": RunEvidence(place / "healthy"), "fsq": RunEvidence(tmp_path / "fsq")}
    dead = {name: CHECKS["dead codes"].remedy(run) for name, run in runs.items()}
    restart = "restart unused codes (the quantizer's restart=nearest)"
    assert dead["vq"] == f"{restart}; add entropy loss; use fewer codes", "k-means it has already"
    assert restart in CHECKS["codebook collapse"].remedy(runs["vq"])
    assert dead["fsq"] == "use fewer codes"
    runs["vq"].config.model.quantizer.vq.init = "random"
    assert CHECKS["dead codes"].remedy(runs["vq"]).startswith("warm up the quantizer with init=kmeans; ")
    assert "entropy_temperature" not in CHECKS["entropy imbalance"].remedy(runs["fsq"])
    assert "fp32" not in CHECKS["non-finite steps"].remedy(runs["vq"]), "it is in fp32"
    for run in runs.values():
        assert all(check.remedy(run) for check in CHECKS.values())
        keys = {word for check in CHECKS.values() for word in re.findall(r"[a-z]+(?:\.[a-z_]+)+", check.remedy(run))}
        files = {"config.yaml", "log.txt", "launch.sh"}
        assert {key for key in keys - files if run.get(key) is None} == set()


def test_every_check_says_why():
    """A docstring with the reason of its threshold."""
    assert len(CHECKS) >= 12 and all(check.severity.__doc__ for check in CHECKS.values())
