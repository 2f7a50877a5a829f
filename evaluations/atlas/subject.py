"""What an atlas shows: a trained tokenizer, the generator over its codes, and the run that made them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoregressive.loading import load_gpt, require_pair, require_sizes, survey_gpt
from autoregressive.models.base import Generator
from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.weights import find_weights
from engine.config import read_yaml
from engine.preflight import Preflight
from engine.shipped_models import is_shipped
from evaluations.report.run_folder import RunFolder
from evaluations.run_layout import RunLayout
from tokenizer.loading import load_tokenizer, survey_tokenizer
from tokenizer.models.base import Tokenizer


@dataclass(frozen=True)
class Place:
    """Where the networks of one RUN of the command line lie."""

    run: str  # as it was given
    tokenizer: str
    generator: str | None
    note: str = ""  # why there is no generator, where one might be expected

    @property
    def title(self) -> str:
        """The last part of the path, for people."""
        return Path(self.run).resolve().name

    def run_folder(self) -> RunFolder | None:
        """The folder with the records of its training; None for a single file."""
        return RunFolder(Path(self.run)) if Path(self.run).is_dir() else None


def place_of(run: str, generator: str | None = None) -> Place:
    """Finds the networks of a run; `generator` is a path that the user named instead of the run's own.

    RUN is the folder of a pipeline such as the quick start, that of a training of a tokenizer or of a generator over
    its codes, an export, or a published file.
    """
    # A model that comes with the program.
    if is_shipped(run):
        return Place(run, run, generator or run)

    # A pipeline, with one folder per network.
    layout = RunLayout(run)
    if layout.tokenizer.is_dir():
        if generator is not None or not layout.generator.is_dir():
            return Place(run, str(layout.tokenizer), generator)
        try:
            find_weights(layout.generator, "auto", "generator", hashed=False)
        except CheckpointError as error:
            return Place(run, str(layout.tokenizer), None, f"No samples: {error}.")
        return Place(run, str(layout.tokenizer), str(layout.generator))

    # The training of a generator, whose config names the tokenizer.
    config_file = Path(run) / "config.yaml"
    data = read_yaml(config_file).get("data", {}) if config_file.is_file() else {}
    if data.get("tokenizer"):
        return Place(run, str(data["tokenizer"]), generator or run)
    return Place(run, run, generator)


@dataclass(frozen=True)
class Subject:
    """The loaded networks of a place."""

    place: Place
    tokenizer: Tokenizer
    generator: Generator | None


def load_subject(place: Place, tok_config: str | None, weights: str, device: str) -> Subject:
    """Loads the networks of a place, and checks that they belong together."""
    tokenizer = load_tokenizer(place.tokenizer, config=tok_config, weights=weights, device=device)
    generator = None
    if place.generator is not None:
        generator = load_gpt(place.generator, weights=weights, device=device)
        require_pair(generator, tokenizer)
    return Subject(place, tokenizer, generator)


def subject_needs(place: Place, tok_config: str | None, weights: str, preflight: Preflight) -> Tokenizer | None:
    """Looks for the networks of a place; returns the tokenizer without storage, or None where it is not there."""
    tokenizer = None
    with preflight.collecting():
        tokenizer = survey_tokenizer(place.tokenizer, config=tok_config, weights=weights, hashed=preflight.hashes)
        preflight.ready.append(
            f"tokenizer: {place.tokenizer} ({tokenizer.num_tokens} tokens, {tokenizer.image_size} px)"
        )
    if place.generator is not None:
        with preflight.collecting():
            generator = survey_gpt(place.generator, weights=weights, hashed=preflight.hashes)
            if tokenizer is not None:
                require_sizes(generator, tokenizer)
            preflight.ready.append(f"generator: {place.generator} ({generator.num_classes} classes)")
    return tokenizer
