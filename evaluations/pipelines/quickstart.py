"""The quick start: its run folder, the commands of its stages, and the numbers that it collects."""

from __future__ import annotations

from argparse import Namespace
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import read_yaml
from engine.json_text import to_json
from engine.messages import UserError
from engine.pipeline import Stage, StageLog, config_flags, module_stage
from engine.recipe_names import recipe_file, recipe_files
from engine.run_log import read_metrics
from evaluations.pipelines.stages import (
    both_networks,
    codes_stage,
    probe_stage,
    search_stage,
    text_stage,
    val_loss_stage,
)
from evaluations.results import read_result
from evaluations.run_layout import RunLayout
from evaluations.trainers import recipe_tree

RECIPES = "quickstart"  # the folder of its recipes
GUIDANCE_SCALE = 2.0
NUM_SAMPLES = 1000  # generated images that are measured
SHORT_SAMPLES = 120  # with --short: just enough for a distance of the 112 features of EfficientNet-Lite0
TEXT_PICTURES = 200  # per height of drawn letters: small pictures hold few words
SHORT_TEXT_PICTURES = 2  # with --short: no number is available
EARLIER = "_earlier"  # ends the names of stages and results of an earlier phase of the tokenizer
SHORT_SEARCH_SAMPLES = 50  # with --short, at each guidance scale: too few, which is forced


@dataclass(frozen=True)
class System:
    """A family of models."""

    data: tuple[str, ...]  # that it has settings for
    short_configs: tuple[str, ...] = ()  # of the tokenizer's training with --short, over the others
    short_overrides: tuple[str, ...] = ()
    earlier_phase: str = ""  # of the tokenizer: makes the codes of the generator, and is measured beside the last one
    base: str = ""  # the system whose tokenizer this one has, where it differs by its generator only
    guidance_scale: float = GUIDANCE_SCALE
    guidance_schedule: tuple[str, ...] = ()  # flags of the sampler beside the scale


# The values of --system and --data. The first system is the default, and the first data set of each system is its own
# default. A folder of configs/quickstart has the recipes of a system in place of the usual ones, or those of a data set
# over them.
DATA = ("mnist5k", "twemoji", "text")
SYSTEMS = {
    "gigatok": System(data=DATA[:2], short_configs=(f"{RECIPES}/full",)),
    "wetok": System(
        data=DATA[:1],
        short_overrides=("phases=[{steps: 20, lr: 1e-3}, {steps: 10, lr: 1e-3, generative_decoder: true}]",),
    ),
    "text": System(data=DATA[2:]),
    "fsq": System(data=DATA[:1]),
    "ema": System(data=DATA[:1]),
    "flexible": System(data=DATA[:1], short_overrides=("model.quantizer.vq.warmup_steps=10",)),
    "decoder": System(
        data=DATA[:1],
        short_overrides=(
            "phases=[{steps: 20, lr: 8e-4}, {steps: 10, lr: 4e-4, train_parts: decoder}]",
            "model.quantizer.vq.warmup_steps=10",
            "loss.discriminator={start_step: 21, warmup_steps: 4}",
        ),
        earlier_phase="phase_1",
    ),
    "rvq": System(data=DATA[:1], short_overrides=("model.quantizer.rvq.warmup_steps=20",)),
    "mcq": System(data=DATA[:1], short_overrides=("model.quantizer.mcq.warmup_steps=20",)),
    "rar": System(data=DATA[:1], base="gigatok"),
    "maskgit": System(data=DATA[:1], base="gigatok"),
    "bar": System(data=DATA[:1], base="wetok"),
    # Guided as published: not at all at the first scale, most at the last one.
    "var": System(
        data=DATA[:1],
        short_overrides=("loss.discriminator.start_step=20",),
        guidance_scale=2.5,
        guidance_schedule=("--cfg-schedule", "linear", "--guidance-first-token", "schedule"),
    ),
}
DEFAULT_SYSTEM = next(iter(SYSTEMS))


def check_flags(args: Namespace) -> None:
    """Raises UserError if the system has no settings for the data, or a classifier is given that knows other images."""
    accepted = SYSTEMS[args.system].data
    if args.data not in accepted:
        names = ", ".join(accepted)
        raise UserError(f"--system {args.system} has settings for --data {names} only, not for {args.data}")
    if args.classifier is not None and not has_classifier(args):
        raise UserError(f"--classifier {args.classifier}: no images of --data {args.data} are classified")


def tokenizer_system(system: str) -> str:
    """The system that a tokenizer belongs to: `system` itself, or the one that it has its tokenizer of."""
    return SYSTEMS[system].base or system


# ------------------------------------------------------------------------------------------------ folders and configs
def run_name(args: Namespace) -> str:
    """The name of the run folder, without the number of a fresh one."""
    parts = ["quickstart"]
    if args.system != DEFAULT_SYSTEM:
        parts.append(args.system)
    if args.data != SYSTEMS[args.system].data[0]:
        parts.append(args.data)
    if args.seed:
        parts.append(f"seed{args.seed}")
    if args.short:
        parts.append("short")
    return "-".join(parts)


def run_folder(args: Namespace) -> Path:
    """Finds the newest of runs/quickstart, runs/quickstart-2, ...

    With --fresh it is the first of them that does not exist.
    """
    newest = candidate = args.runs_dir / run_name(args)
    number = 1
    while candidate.exists():
        newest = candidate
        number += 1
        candidate = args.runs_dir / f"{run_name(args)}-{number}"
    return candidate if args.fresh else newest


def configs_of(args: Namespace, training: str) -> list[str]:
    """Lists the recipes of a training by name, later ones over earlier ones.

    They are that of the system if it has its own, and overlays of the data and of --short.
    """
    system = tokenizer_system(args.system) if training == "tokenizer" else args.system
    of_system = f"{RECIPES}/{system}/{training}"
    of_data = f"{RECIPES}/{args.data}/{training}"
    configs = [of_system if of_system in recipe_files() else f"{RECIPES}/{training}"]
    if of_data in recipe_files() and of_data not in configs:
        configs.append(of_data)
    if args.short and training == "tokenizer":
        configs += SYSTEMS[system].short_configs
    return configs


def image_size_of(args: Namespace) -> int:
    """Side of the images in pixels, as the tokenizer's YAMLs say it."""
    return recipe_tree(configs_of(args, "tokenizer")).data.image_size


def has_classifier(args: Namespace) -> bool:
    """Whether the classifier is for this data."""
    return read_yaml(recipe_file(f"{RECIPES}/classifier")).data.name == args.data


# ------------------------------------------------------------------------------------------------ stages
def layout_of(args: Namespace, run: Path) -> tuple[RunLayout, bool]:
    """Where the parts of a run are, and whether its tokenizer and codes are those of another run.

    A system that differs by its generator only takes those of the newest run of its base with the same data, seed and
    length, where they are finished; a run that has begun a tokenizer of its own keeps it.
    """
    layout = RunLayout(run)
    if not SYSTEMS[args.system].base or layout.tokenizer.exists():
        return layout, False
    of_base = copy(args)
    of_base.system, of_base.fresh = SYSTEMS[args.system].base, False
    base = RunLayout(run_folder(of_base))
    log = StageLog(base.root)
    if not all(log.done(folder.name) for folder in (base.tokenizer, base.codes)):
        return layout, False
    layout.tokenizer, layout.codes = base.tokenizer, base.codes
    return layout, True


def stages_of(args: Namespace, run: Path) -> list[Stage]:
    """The commands of the journey; each can be typed by hand."""
    layout, has_codes = layout_of(args, run)
    earlier_phase = SYSTEMS[args.system].earlier_phase
    makes_codes = layout.tokenizer / earlier_phase
    classifier = args.classifier
    classifier_stages: list[Stage] = []
    if classifier is None and has_classifier(args):
        classifier = layout.classifier
        classifier_stages = [_training(args, classifier, "evaluations.classifier", short_steps=30)]

    stages: list[Stage] = []
    if not has_codes:
        stages.append(_training(args, layout.tokenizer, "tokenizer.train", short_steps=50))
        stages.append(codes_stage(makes_codes, layout.codes))
    stages += [
        _training(
            args, layout.generator, "autoregressive.train",
            f"data.codes={layout.codes}", f"data.tokenizer={makes_codes}", short_steps=30,
        ),
        *classifier_stages,
    ]  # fmt: skip
    num_samples = SHORT_SAMPLES if args.short else NUM_SAMPLES
    if earlier_phase:
        stages += evaluation_stages(layout, classifier, num_samples, args.system, makes_codes, EARLIER)
    stages += evaluation_stages(layout, classifier, num_samples, args.system)
    if args.complete:
        stages += _more_evaluations(args, layout)
    return stages


def guidance_flags(system: str) -> list[str]:
    """How a system samples: the scale of guidance, and its schedule where it is not constant."""
    return ["--cfg-scale", str(SYSTEMS[system].guidance_scale), *SYSTEMS[system].guidance_schedule]


def evaluation_stages(
    layout: RunLayout,
    classifier: Path | None,
    num_samples: int,
    system: str = DEFAULT_SYSTEM,
    tokenizer: Path | None = None,
    suffix: str = "",
) -> list[Stage]:
    """What every quick start measures: reconstructions, and generated images with a classifier where there is one.

    `tokenizer` is another one than that of the run, of the same codes; `suffix` tells its stages and results apart.
    """
    tokenizer = tokenizer or layout.tokenizer
    classifier_flags = ["--classifier", str(classifier)] if classifier is not None else []
    return [
        # Held-out images through the tokenizer.
        module_stage(
            f"reconstruction{suffix}", "evaluations.reconstruction",
            "--vq-ckpt", str(tokenizer), "--reference", "train",
            "--output", str(layout.result(f"reconstruction{suffix}")),
        ),
        # Images that the generator draws.
        module_stage(
            f"generation{suffix}", "evaluations.generation",
            *both_networks(tokenizer, layout.generator),
            "--code-path", str(layout.codes), *classifier_flags,
            *guidance_flags(system),
            "--num-fid-samples", str(num_samples),
            "--per-proc-batch-size", "50",
            "--output", str(layout.result(f"generation{suffix}")),
        ),
    ]  # fmt: skip


def _training(args: Namespace, folder: Path, module: str, *overrides: str, short_steps: int) -> Stage:
    """The training of a network into `folder`, whose name is also that of its YAML.

    With --short it has `short_steps` steps.
    """
    name = folder.name
    arguments = [*config_flags(configs_of(args, name)), f"loop.run_dir={folder}", *overrides]
    if args.seed:
        arguments.append(f"loop.seed={args.seed}")
    if args.short and name == "tokenizer":
        arguments += SYSTEMS[tokenizer_system(args.system)].short_overrides
    if args.short:
        arguments += [f"loop.steps={short_steps}", "loop.log_every=10", "loop.eval_every=0"]
    return module_stage(name, module, *arguments)


def _more_evaluations(args: Namespace, layout: RunLayout) -> list[Stage]:
    """The further evaluations of --complete, and the chain of AR probing."""
    networks = both_networks(layout.tokenizer, layout.generator)
    probe_overrides = [f"data.name={args.data}", f"data.image_size={image_size_of(args)}"]
    if args.short:
        probe_overrides += ["probe.epochs=2", "probe.warmup_epochs=1"]
    short_force = ["--force"] if args.short else []
    search_flags = list(read_yaml(recipe_file(f"{RECIPES}/ar_probe")).search_flags)

    return [
        search_stage(
            layout, networks,
            "--num-fid-samples", str(SHORT_SEARCH_SAMPLES if args.short else 500), "--per-proc-batch-size", "50",
            *short_force, *SYSTEMS[args.system].guidance_schedule, "--scales", "1,1.5,2,2.5,3,4",
        ),
        val_loss_stage(layout, networks, "--code-path", str(layout.codes)),
        _probe(layout.generator_probe, layout, probe_overrides, f"network.gpt={layout.generator}"),
        _probe(layout.tokenizer_probe, layout, probe_overrides),
        _training(args, layout.text_reader, "evaluations.text_reader", short_steps=20),
        text_stage(layout, SHORT_TEXT_PICTURES if args.short else TEXT_PICTURES),
        module_stage(
            "pca", "evaluations.visualize",
            "--vq-ckpt", str(layout.tokenizer), "--output", str(layout.arrays("pca")),
        ),
        module_stage(
            "ar_probe", "evaluations.ar_probe", "--config", f"{RECIPES}/ar_probe",
            f"tokenizer={layout.tokenizer}", f"run_dir={layout.ar_probe}",
            f"num_fid_samples={SHORT_SEARCH_SAMPLES if args.short else 200}",
            *([f"search_flags={to_json([*search_flags, *short_force])}"] if args.short else []),
            f"gpt_configs=[{','.join(configs_of(args, layout.generator.name))}]",
            f"gpt_overrides=[loop.steps={20 if args.short else 300}]",
            f"probe_overrides=[{','.join(probe_overrides)}]",
        ),
    ]  # fmt: skip


def _probe(folder: Path, layout: RunLayout, overrides: list[str], *networks: str) -> Stage:
    """A linear probe into `folder`, whose name is also that of its YAML."""
    configs = [f"{RECIPES}/{folder.name}"]
    return probe_stage(folder.name, folder, configs, *overrides, f"network.tokenizer={layout.tokenizer}", *networks)


# ------------------------------------------------------------------------------------------------ results
def collect(run: Path, log: StageLog, classifier: Path | None = None) -> dict[str, Any]:
    """Collects the numbers of a finished run: fractions in 0..1, PSNR in dB, seconds per stage (of the clock and of
    processor time). `classifier` is the one that measured, where it is not the run's.

    `forced` ({metric: why it should not be trusted}) is there too, where any number was forced.
    """
    layout = RunLayout(run)
    reconstruction = read_result(layout.result("reconstruction"))
    reconstructed = reconstruction["metrics"]
    generation = read_result(layout.result("generation"))
    generated = generation["metrics"]

    classifier_accuracy = None
    if "label_agreement" in generated:
        classifier_accuracy = accuracy_of(classifier or layout.classifier)

    forced = {**reconstruction.get("forced", {}), **generation.get("forced", {})}
    return {
        "psnr": reconstructed["psnr"],
        "codebook_usage": reconstructed["codebook_usage"],
        "codebook_size": reconstruction["protocol"]["codebook_size"],
        "num_tokens": reconstruction["protocol"]["num_tokens"],
        "frechet_lite0": {
            "real": reconstructed["frechet_lite0_real"],
            "reconstruction": reconstructed["frechet_lite0_reconstruction"],
            "generated": generated["frechet_lite0_generated"],
            "noise": generated["frechet_lite0_noise"],
        },
        "label_agreement": generated.get("label_agreement"),
        "classifier_accuracy": classifier_accuracy,
        "distinct": generated["distinct"],
        "memorized": generated["memorized"],
        "guidance_scale": generation["protocol"]["sampler"]["guidance_scale"],
        "seconds": log.seconds(),
        "cpu_seconds": log.cpu_seconds(),
        **({"forced": forced} if forced else {}),
        **_earlier_numbers(layout),
    }


def accuracy_of(classifier: Path) -> float:
    """The last accuracy of a classifier on held-out images, in 0..1. Raises UserError if none is on record."""
    accuracies = [record["val/accuracy"] for record in read_metrics(classifier) if "val/accuracy" in record]
    if not accuracies:
        raise UserError(f"classifier {classifier}: its accuracy on real images is not on record (metrics.jsonl)")
    return accuracies[-1]


def _earlier_numbers(layout: RunLayout) -> dict[str, Any]:
    """Those of the tokenizer's earlier phase with the same codes and samples, where it was measured."""
    if not layout.result(f"generation{EARLIER}").is_file():
        return {}
    reconstructed, generated = (
        read_result(layout.result(f"{name}{EARLIER}"))["metrics"] for name in ("reconstruction", "generation")
    )
    return {
        "earlier": {
            "psnr": reconstructed["psnr"],
            "frechet_lite0": {
                "reconstruction": reconstructed["frechet_lite0_reconstruction"],
                "generated": generated["frechet_lite0_generated"],
            },
            "label_agreement": generated.get("label_agreement"),
        }
    }


def results_table(results: dict[str, Any]) -> str:
    """Formats the results for people."""
    # Reconstruction, and distances of feature statistics.
    frechet = results["frechet_lite0"]
    rows = [
        ("PSNR, held-out images", f"{results['psnr']:.2f} dB"),
        ("codebook usage", f"{results['codebook_usage']:.1%} of {results['codebook_size']} codes"),
        ("frechet_lite0 to training images: real held-out", f"{frechet['real']:.1f}"),
        ("                                  reconstructed", f"{frechet['reconstruction']:.1f}"),
        ("                                  generated", f"{frechet['generated']:.1f}"),
        ("                                  uniform noise", f"{frechet['noise']:.1f}"),
    ]

    # Generated images.
    if results["label_agreement"] is not None:
        accuracy = f"classifier: {results['classifier_accuracy']:.1%} on real images"
        rows.append(("generated images that show their class", f"{results['label_agreement']:.1%} ({accuracy})"))
    rows += [
        ("distinct code sequences", f"{results['distinct']:.1%}"),
        ("memorized code sequences", f"{results['memorized']:.1%}"),
        ("guidance scale", f"{results['guidance_scale']:g}"),
        ("seconds, all stages", f"{sum(results['seconds'].values()):.0f}"),
    ]

    if "earlier" in results:
        earlier = results["earlier"]
        rows += [
            ("before the decoder was trained alone: PSNR", f"{earlier['psnr']:.2f} dB"),
            (
                "                           frechet_lite0 reconstructed",
                f"{earlier['frechet_lite0']['reconstruction']:.1f}",
            ),
            ("                           frechet_lite0 generated", f"{earlier['frechet_lite0']['generated']:.1f}"),
        ]
    if "forced" in results:
        rows.append(("forced, not to be trusted", ", ".join(results["forced"])))

    return "\n".join(f"  {name:50s} {text}" for name, text in rows)
