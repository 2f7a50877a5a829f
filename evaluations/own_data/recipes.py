"""Recipes for the pictures of a folder: copies of configs/own_data with values for them, and the commands to run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from autoregressive.training import build as generator_build
from autoregressive.training.config import GPTTrainConfig
from engine.config import flatten, merge_config
from engine.data.crops import largest_short_side
from engine.data.images import printable
from engine.installation import CONFIGS, SCRIPTS
from engine.messages import UserError
from evaluations.own_data.fit import Choice, Suggestion, Target
from evaluations.own_data.recipe_text import fill_in
from evaluations.own_data.scan import ORIENTATION
from evaluations.own_data.survey import Survey
from evaluations.run_layout import RunLayout
from tokenizer.training.checks import validate
from tokenizer.training.config import TokenizerTrainConfig

TEMPLATES = CONFIGS / "own_data"
TEN_CROPS = "--ten-crop"  # ten views of each image, which a GPT learns by heart later than one
MAX_VALIDATED = 200  # held-out images that are looked at during training
SLOW_DECODING = 0.05  # seconds for a batch, from which on a process of its own reads ahead
BY_EPOCHS = ("loss.shortcut.end_step", "loss.discriminator.start_step")  # steps that move with the length of a run


@dataclass(frozen=True)
class Plan:
    """What is trained on which images, for one kind of machine."""

    survey: Survey
    target: Target
    suggestion: Suggestion
    output: Path  # folder of the recipes, absolute
    held_out: Path | None  # the list of held-out images
    num_held_out: int

    @property
    def run(self) -> RunLayout:
        """Where the networks go."""
        return RunLayout(self.output / self.target.run_name)

    def recipe(self, network: Path) -> Path:
        """The YAML file that trains a network of the run."""
        return self.output / self.template(network).name

    def template(self, network: Path) -> Path:
        """The shipped recipe that it is made from."""
        return TEMPLATES / f"{network.name}{self.target.suffix}.yaml"

    @property
    def networks(self) -> tuple[Path, Path]:
        """The run folders of tokenizer and generator."""
        return self.run.tokenizer, self.run.generator


def recipe_texts(plan: Plan) -> dict[Path, str]:
    """{file: text} of the recipes of a plan, checked as their trainers check them.

    Raises UserError for values that do not fit together, such as an image size that was asked for.
    """
    tokenizer, generator = plan.networks
    makers: list[tuple[Path, Callable[[Plan, DictConfig], dict[str, Choice | None]], type, Callable[[Any], Any]]] = [
        (tokenizer, _tokenizer_choices, TokenizerTrainConfig, validate),
        (generator, _generator_choices, GPTTrainConfig, generator_build.network_on_meta),
    ]
    texts = {}
    for network, choices_of, schema, check in makers:
        template = plan.template(network).read_text(encoding="utf-8")
        choices = choices_of(plan, OmegaConf.create(template))
        text = fill_in(template, choices, _header(plan, network))
        merge_config(schema, [(plan.recipe(network).name, OmegaConf.create(text))], check)
        texts[plan.recipe(network)] = text
    return texts


# ------------------------------------------------------------------------------------------------ values
def _tokenizer_choices(plan: Plan, template: DictConfig) -> dict[str, Choice | None]:
    """The values of a tokenizer's recipe, by dotted key."""
    layout, scan, suggestion = plan.survey.layout, plan.survey.scan, plan.suggestion
    size, steps = suggestion.image_size.value, suggestion.steps.value
    choices: dict[str, Choice | None] = {
        # The images.
        "data.name": Choice(layout.data_name, layout.reason),
        "data.root": Choice(str(layout.folder.absolute()), f"{len(layout.images):,} images"),
        "data.held_out": None,
        "data.image_size": suggestion.image_size,
        "data.global_batch_size": suggestion.batch,
        "data.num_workers": _num_workers(plan, template),
        "data.fast_decode": _fast_decode(plan, template),
        "data.skip_broken": _skip_broken(plan),
        # The run.
        "validation.num_images": _num_validated(plan),
        "loop.run_dir": Choice(str(plan.run.tokenizer), ""),
        "loop.steps": suggestion.steps,
    }
    if plan.held_out is not None:
        counts = f"{plan.num_held_out:,} held-out of {len(scan.images):,} readable images, none of them a copy"
        choices["data.held_out"] = Choice(str(plan.held_out), counts)

    # A token stands for as many pixels as in the template, also where the model must be told.
    values = flatten(template)
    for key in values:
        if key.endswith(".num_tokens"):
            pixels = round(values["data.image_size"] / values[key] ** 0.5)
            reason = f"one for each {pixels} x {pixels} pixels, as many as a grid would have"
            choices[key] = Choice(values[key] * size**2 // values["data.image_size"] ** 2, reason)

    for key in BY_EPOCHS:
        if key in values:
            share = values[key] / values["loop.steps"]
            choices[key] = Choice(max(1, round(share * steps)), f"{share:.0%} of the steps")
    return choices


def _generator_choices(plan: Plan, template: DictConfig) -> dict[str, Choice | None]:
    """The values of a generator's recipe, by dotted key."""
    return {
        "data.codes": Choice(str(plan.run.codes), "they say how many codes, tokens and classes there are"),
        "data.tokenizer": Choice(str(plan.run.tokenizer), ""),
        "data.global_batch_size": plan.suggestion.generator_batch,
        "validation.num_images": _num_validated(plan),
        "loop.run_dir": Choice(str(plan.run.generator), ""),
        "loop.steps": plan.suggestion.generator_steps,
    }


def _num_validated(plan: Plan) -> Choice:
    """How many images a validation looks at; a recipe cannot say none."""
    return Choice(max(1, min(MAX_VALIDATED, plan.num_held_out)), "of the held-out images")


def _num_workers(plan: Plan, template: DictConfig) -> Choice:
    """Loader processes: none where decoding is quick and the template has none."""
    most = template.data.num_workers
    if most > 0:
        return Choice(most, "loader processes of each process that trains")
    if plan.suggestion.batch.value / plan.survey.images_per_second > SLOW_DECODING:
        return Choice(1, "decoding takes long: a process of its own reads ahead")
    return Choice(0, "decoding is quick: the images are read between the steps")


def _fast_decode(plan: Plan, template: DictConfig) -> Choice:
    """JPEG files that are at least twice as large as needed can be decoded smaller."""
    needed = largest_short_side(plan.suggestion.image_size.value, template.data.min_crop_scale)
    images = plan.survey.scan.images
    large = sum(image.header.format == "JPEG" and min(image.header.size(ORIENTATION)) >= 2 * needed for image in images)
    said = f"{large:,} of {len(images):,} images are JPEG files at least twice as large as needed"
    return Choice(large > len(images) / 2, said)


def _skip_broken(plan: Plan) -> Choice:
    """Broken files, dead links and files that are no images stop a training, unless they are skipped."""
    scan, listing = plan.survey.scan, plan.survey.layout.listing
    counts = {
        "broken images": len(scan.broken),
        "links to nowhere": len(listing.broken),
        "files that are no images": len(listing.others),
        "images at another depth": len(plan.survey.layout.left_out),
    }
    told = ", ".join(f"{name}: {count:,}" for name, count in counts.items() if count)
    return Choice(bool(told), f"{told} (python -m evaluations.data shows them)" if told else "all files were readable")


def _header(plan: Plan, network: Path) -> list[str]:
    """The comment at the head of a recipe."""
    command = training_command(plan, network).shown(uses_vt=False)
    return [
        f"For the pictures in {printable(plan.survey.layout.folder)}, on {plan.target.title}.",
        f"Written by python -m evaluations.init from configs/own_data/{plan.template(network).name}.",
        command,
    ]


# ------------------------------------------------------------------------------------------------ commands
@dataclass(frozen=True)
class Command:
    """One command of those that train and look."""

    title: str
    module: str
    arguments: tuple[str, ...]
    verb: str = ""  # of `vt`; empty where it has none
    on_gpus: bool = False  # can use several

    def shown(self, uses_vt: bool) -> str:
        """The line to type."""
        program = f"vt {self.verb}" if uses_vt and self.verb else f"python -m {self.module}"
        if self.on_gpus:
            launcher = f"bash {shlex.quote(str(SCRIPTS / 'launch.sh'))} -m {self.module}"
            program = f"GPUS=8 {program if uses_vt and self.verb else launcher}"
        return f"{program} {shlex.join(self.arguments)}"


def training_command(plan: Plan, network: Path) -> Command:
    """The command that trains a network of the run."""
    is_tokenizer = network == plan.run.tokenizer
    module = "tokenizer.train" if is_tokenizer else "autoregressive.train"
    title = "the tokenizer" if is_tokenizer else "the GPT, on the codes"
    arguments = ("--config", str(plan.recipe(network)))
    return Command(title, module, arguments, "train", on_gpus=plan.target.has_gpus)


def commands_of(plan: Plan) -> list[Command]:
    """The commands from the recipes to a page with everything."""
    run = plan.run
    tokenizer = ("--vq-ckpt", str(run.tokenizer))
    codes = (*tokenizer, "--code-path", str(run.codes), TEN_CROPS)
    reconstruction = (*tokenizer, "--extractor", "none", "--output", str(run.result("reconstruction")))
    samples = (*tokenizer, "--gpt-ckpt", str(run.generator), "--sample-dir", str(run.samples))

    # Without held-out pictures there are none to score.
    scores = Command("scores of the held-out pictures", "evaluations.reconstruction", reconstruction)
    title = "codes of ten crops of each image"
    return [
        training_command(plan, run.tokenizer),
        Command(title, "autoregressive.extract_codes", codes, "extract", on_gpus=plan.target.has_gpus),
        training_command(plan, run.generator),
        Command("new pictures", "autoregressive.sample", samples, "sample"),
        *([scores] if plan.held_out is not None else []),
        Command("a page with curves and pictures", "evaluations.report", (str(run.root),), "report"),
    ]


def require_outside(output: Path, folder: Path) -> None:
    """Raises UserError where the recipes would lie among the pictures: so would the samples, which are pictures too."""
    if output.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--output {output} lies in the folder of pictures {folder}; give a folder outside of it")


def other_files(files: Mapping[Path, bytes]) -> list[Path]:
    """Those of the files that are there already, with another content."""
    present = [path for path in files if path.exists() or path.is_symlink()]
    return [path for path in present if not path.is_file() or path.read_bytes() != files[path]]
