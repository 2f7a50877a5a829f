"""Components that nobody here knows go through every entry: a quantizer, a tokenizer with a transformer, a
discriminator, a teacher, an image source, a generator that is no GPT, and metrics, one plug-in file each.

No file of the product is touched for any of them: each is named with `--plugin`. The tests go on from each other, as a
user would; one run folder serves all.
"""

import importlib
import json
import re
from pathlib import Path

import pytest
from mains import entry_modules
from ranks import on_ranks

from autoregressive.models.registry import GENERATORS
from engine import plugins
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.config import load_config
from engine.data.sources import SOURCES
from engine.run_log import read_metrics
from evaluations.metrics.registry import METRICS
from tokenizer.discriminators.gan_losses import DISCRIMINATOR_LOSSES, GENERATOR_LOSSES
from tokenizer.discriminators.registry import DISCRIMINATORS
from tokenizer.losses.semantic import TEACHERS
from tokenizer.models.registry import MODELS, QUANTIZERS

ROOT = Path(__file__).parents[1]
FOREIGN = ROOT / "tests" / "foreign"
REGISTRIES = (
    GENERATORS, SOURCES, METRICS, DISCRIMINATORS, DISCRIMINATOR_LOSSES, GENERATOR_LOSSES, TEACHERS, MODELS, QUANTIZERS
)  # fmt: skip
PLUGINS = [part for file in sorted(FOREIGN.glob("*.py")) for part in ("--plugin", file)]

TOKENIZER = [
    "data={name: shapes, image_size: 16, global_batch_size: 4, num_workers: 1, random_crop: false, flip_prob: 0}",
    "data.shapes.num_images=24",
    "model={name: patches, patches: {width: 16}, quantizer: {name: lattice, lattice: {channels: 3}}}",
    "loss={perceptual_weight: 0, quantizer_weights: {spread: 0.2}}",
    "loss.discriminator={name: pooled, pooled: {channels: 4}, start_step: 2, weight: 0.1}",
    "loss.discriminator={generator_loss: least_squares, discriminator_loss: least_squares}",
    "semantic={teacher: color, color: {offset: 0.25}, weight: 0.3}",
    "validation={num_images: 8, batch_size: 4}",
    "optim={lr: 1e-3, schedule: constant}",
    "ema_decay=0.9",
    "loop={device: cpu, log_every: 1, eval_every: 0, save_every: 2}",
]
GENERATOR = [
    "model={name: masked, masked: {width: 16, vocab_size: 27, num_tokens: 16, num_classes: 2}}",
    "data={global_batch_size: 4, num_workers: 0}",
    "optim={lr: 1e-2, schedule: constant}",
    "validation={num_images: 8, batch_size: 4, preview_classes: 2}",
    "loop={device: cpu, log_every: 1, eval_every: 0, save_every: 100}",
]
# Modules with a `main` that have nothing to do with trained components.
APART = {
    "engine.index_images": "looks up image files",
    "evaluations.ar_probe": "starts the entries below as processes; its plan is printed here",
    "evaluations.classifier": "trains its own small network on any image source",
    "evaluations.tokbench": "scores words that another program has read",
    "evaluations.text_reader": "trains its own small network on words that it draws",
    "evaluations.benchmarks": "measures parts against their plain formulations",
    "evaluations.data": "looks at files of images",
    "evaluations.init": "writes copies of shipped recipes",
    "evaluations.own_data.example": "writes files of images",
    "evaluations.estimate": "costs of recipes, of networks that count their operations",
    "evaluations.methods": "starts quick starts as processes",
    "evaluations.memory": "measures the entropy loss of sign codes",
    "evaluations.publish": "copies the weights and the config of any network",
    "evaluations.protocols": "prints how the numbers of papers were measured",
    "evaluations.recipes": "lists the recipes that come with the program",
    "evaluations.paper_tables": "prints tables and commands",
    "evaluations.probe_checkpoints": "starts entries below as processes, on each checkpoint",
    "evaluations.quickstart": "starts the entries below on its own configs",
    "evaluations.ship": "starts entries below on the networks of a quick start",
    "evaluations.scaling": "draws numbers of results, and sizes of any network that can be loaded",
    "evaluations.sweep": "starts the trainers as processes",
    **{
        f"evaluations.{name}": "starts the entries below as processes; its --check runs theirs"
        for name in ("train_vq_and_eval", "train_c2i_and_eval", "eval_c2i", "lin_probe_and_eval")
    },
    "evaluations.make_reference": "statistics of image files",
    "evaluations.measure": "metrics of image files",
}


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The plug-ins of this module, taken out of the registries again behind it."""
    before = [dict(registry) for registry in REGISTRIES]
    loaded = dict(plugins._loaded)
    plugins.load([str(file) for file in sorted(FOREIGN.glob("*.py"))])
    yield
    for registry, content in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(content)
    plugins._loaded.clear()
    plugins._loaded.update(loaded)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("foreign")


RAN: set[str] = set()


@pytest.fixture
def run(entry):
    """`run(module, *arguments)`: the entry with all plug-ins; its output. It must end well."""

    def call(name, *arguments, code=0):  # code 1 of the doctor: it named a symptom
        RAN.add(name.removesuffix(".__main__"))
        status, out, err = entry(importlib.import_module(name).main, *PLUGINS, *arguments)
        assert status in (code if isinstance(code, tuple) else (code,)), err
        return out + err

    return call


def pair(root: Path) -> list:
    return ["--vq-ckpt", root / "tokenizer", "--gpt-ckpt", root / "generator"]


# ---------------------------------------------------------------------------------------------- training
def test_a_tokenizer_of_foreign_parts_trains_and_resumes(root, run):
    """All of its losses are in the record; a longer run of the same command goes on from the checkpoint."""
    folder = f"loop.run_dir={root / 'tokenizer'}"
    run("tokenizer.train", *TOKENIZER, folder, "loop.steps=3")
    told = run("tokenizer.train", *TOKENIZER, folder, "loop.steps=5")
    assert "resumed from step 3 of 5" in told
    record = read_metrics(root / "tokenizer")[-2]
    assert {"spread", "commitment", "semantic", "adversarial", "discriminator"} <= record.keys()
    stamp = read_manifest(checkpoint_folders(root / "tokenizer")[-1])["stamp"]
    assert {Path(name).name for name in stamp["plugins"]} == {file.name for file in FOREIGN.glob("*.py")}
    assert stamp["networks"]["color"] == "no weights"


def test_a_plan_and_a_dry_run_know_the_foreign_parts(run):
    assert "GB" in run("tokenizer.train", *TOKENIZER, "loop.steps=3", "--plan", 2)
    assert "spread" in run("tokenizer.train", *TOKENIZER, "loop.steps=3", "--dry-run")
    assert "GB" in run("autoregressive.train", *GENERATOR, "--plan", 2)
    assert "channels" in run("tokenizer.train", "--help-config", "model.quantizer.lattice")


def test_problems_of_foreign_sections_are_told_with_those_of_ours(run):
    told = run("tokenizer.train", *TOKENIZER, "model.quantizer.lattice.channels=0", "loop.steps=0", code=2)
    assert "model.quantizer.lattice.channels=0" in told and "loop.steps=0" in told


def test_a_generator_that_is_no_gpt_trains_on_its_codes(root, run):
    run("autoregressive.extract_codes", "--vq-ckpt", root / "tokenizer", "--code-path", root / "codes", "--flip")
    run("autoregressive.check_codes", "--code-path", root / "codes", "--vq-ckpt", root / "tokenizer")
    sources = [f"data.codes={root / 'codes'}", f"data.tokenizer={root / 'tokenizer'}"]
    run("autoregressive.train", *GENERATOR, *sources, f"loop.run_dir={root / 'generator'}", "loop.steps=4")
    assert read_metrics(root / "generator")[-1]["val/loss"] > 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one(root, strategy):
    """The same losses, up to rounding, with a copy per process and with shards."""
    on_ranks(2, root / strategy, train_on_ranks, str(root / strategy / "run"), strategy)
    one, two = (read_metrics(root / name) for name in ("tokenizer", f"{strategy}/run"))
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-4)
    assert two[2]["loss"] == pytest.approx(one[2]["loss"], rel=1e-2)


def train_on_ranks(world, run_dir: str, strategy: str) -> None:
    from tokenizer.train import train
    from tokenizer.training.config import TokenizerTrainConfig

    places = [f"loop.run_dir={run_dir}", f"loop.strategy={strategy}", "loop.steps=3", "data.num_workers=0"]
    train(load_config(TokenizerTrainConfig, overrides=[*TOKENIZER, *places]), world)


# ---------------------------------------------------------------------------------------------- use
def test_pictures_are_sampled_and_reconstructed(root, run):
    run("autoregressive.sample", *pair(root), "--class-idx", "0,1", "--sample-dir", root / "samples")
    images = ["--data", "shapes", "--num-images", 2]
    run("tokenizer.reconstruct", "--vq-ckpt", root / "tokenizer", *images, "--sample-dir", root / "pairs")
    assert list((root / "samples").rglob("*.png")) and list((root / "pairs").rglob("*.png"))
    figure = ["--data-path", root / "pairs", "--num-images", 2, "--sample-dir", root / "figure"]
    run("evaluations.side_by_side", "--vq-ckpt", root / "tokenizer", *figure)
    assert (root / "figure" / "side_by_side.png").is_file()


def test_every_evaluation_measures_them(root, run, text_reader):
    """With a foreign metric where one is asked for; the facts that a tokenizer adds are in the protocol."""
    results = root / "evaluations"
    tokenizer = ["--vq-ckpt", root / "tokenizer"]
    run(
        "evaluations.reconstruction", *tokenizer, "--extractor", "none", "--metrics", "mean_error",
        "--output", results / "reconstruction.json",
    )  # fmt: skip
    reconstruction = json.loads((results / "reconstruction.json").read_text())
    assert 0 < reconstruction["metrics"]["mean_error"] < 2
    assert reconstruction["protocol"]["tokenizer"]["patch"] == 4
    words = ["--text-reader", text_reader, "--num-pictures", 2, "--output", results / "text_readback.json"]
    run("evaluations.text_readback", *tokenizer, *words)
    assert "8" in json.loads((results / "text_readback.json").read_text())["metrics"]["read_by_height"]

    sampling = ["--num-fid-samples", 8, "--per-proc-batch-size", 4]
    run(
        "evaluations.generation", *pair(root), *sampling, "--extractor", "none", "--metrics", "contrast",
        "--code-path", root / "codes", "--output", results / "generation.json",
    )  # fmt: skip
    assert json.loads((results / "generation.json").read_text())["metrics"]["contrast"] > 0
    search = ["--scales", "1,2", "--force", "--output", results / "search.json"]
    run("evaluations.search_cfg", *pair(root), *sampling, *search)
    run("evaluations.val_loss", *pair(root), "--code-path", root / "codes", "--output", results / "val_loss.json")
    assert json.loads((results / "val_loss.json").read_text())["metrics"]["val_loss"] > 0


def test_probes_read_their_features(root, run):
    """Encoder and decoder of the tokenizer, a layer of the generator, and principal components."""
    data = ["data={name: shapes, image_size: 16, num_workers: 0, global_batch_size: 8}", "loop.device=cpu"]
    probe = ["probe={features: cached, epochs: 1, warmup_epochs: 0}", f"network.tokenizer={root / 'tokenizer'}"]
    for source, extra in {
        "tokenizer": [],
        "decoder": ["network.layer=1"],
        "gpt": [f"network.gpt={root / 'generator'}"],
    }.items():
        folder = f"loop.run_dir={root / f'linear_probe_{source}'}"
        run("evaluations.linear_probe", *data, *probe, f"network.source={source}", *extra, folder)
        assert "top1" in json.loads((root / f"linear_probe_{source}" / "result.json").read_text())["metrics"]
    components = root / "evaluations" / "pca.npz"
    run("evaluations.visualize", "--vq-ckpt", root / "tokenizer", "--num-images", 2, "--output", components)
    assert components.with_suffix(".png").is_file()


def test_reports_doctor_and_comparison_show_them(root, run):
    run("evaluations.report.__main__", root)
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "mean absolute error" in page or "mean_error" in page
    run("evaluations.doctor.__main__", root / "tokenizer", "--all", code=(0, 1))
    few = ["--images", 2, "--tokens", 2, "--codes", 2, "--counted-images", 4]
    run("evaluations.atlas.__main__", root, *few, "--output", root / "atlas.html")
    assert re.fullmatch(r"[0-9a-f]{64}", run("evaluations.fingerprint", root / "tokenizer").split()[0])
    result = root / "evaluations" / "reconstruction.json"
    assert "mean_error" in run("evaluations.compare", result, result)


def test_a_model_without_published_files_is_not_converted(root, run):
    """To a published file there is no way; the message says which models have one."""
    told = run("tokenizer.convert", "--vq-ckpt", root / "tokenizer", "--output", root / "x.pt", code=2)
    assert "'patches' has no published layout" in told
    told = run("autoregressive.convert", "--gpt-ckpt", root / "generator", "--output", root / "y.pt", code=2)
    assert "masked" in told


def test_a_foreign_tokenizer_is_exported(root, run):
    """A generator is where its class says how one step of it is computed; this one has no steps."""
    output = ["--output", root / "part.pt2"]
    run("autoregressive.export", root / "tokenizer", "--part", "encode", *output)
    facts = json.loads((root / "part.pt2.json").read_text())
    assert facts["measured"]["tokens_with_other_codes"] == 0
    told = run("autoregressive.export", root / "generator", "--part", "step", *output, "--replace", code=2)
    assert "defines no functional_step" in told


def test_without_the_plug_in_its_run_says_what_to_add(root, entry):
    """A checkpoint never imports anything: whoever reads it is told what to name."""
    models, quantizers = dict(MODELS), dict(QUANTIZERS)
    loaded = dict(plugins._loaded)
    try:
        del MODELS["patches"], QUANTIZERS["lattice"]
        plugins._loaded.clear()
        main = importlib.import_module("evaluations.reconstruction").main
        code, _, err = entry(main, "--vq-ckpt", root / "tokenizer", "--extractor", "none", "--output", root / "r.json")
        assert code == 2 and "add --plugin" in err and "patches_tokenizer.py" in err
    finally:
        MODELS.update(models)
        QUANTIZERS.update(quantizers)
        plugins._loaded.update(loaded)


def test_every_module_with_a_main_ran(run):
    """All of them, but for those that have nothing to do with trained components."""
    assert entry_modules() == RAN | APART.keys()
