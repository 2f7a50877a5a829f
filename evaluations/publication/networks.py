"""The networks of a run that are published, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from autoregressive.loading import load_gpt
from autoregressive.models.registry import GENERATORS
from engine.checkpoint.manifest import read_manifest
from engine.checkpoint.weights import PARTS, find_weights, num_parameters, write_weights
from engine.config import read_yaml
from engine.hub import is_address
from engine.installation import CONFIGS
from engine.messages import UserError
from engine.run_log import read_lines
from engine.sharing import public_config, public_stamp, say_left_out
from engine.shipped_models import is_shipped, shipped_folder
from evaluations.publication.earlier_card import EarlierCard, card_of
from evaluations.run_layout import RunLayout
from tokenizer import load_tokenizer

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Source:
    """Where a network of a run lies."""

    part: str  # its folder in the publication: empty at the top, else as in the run
    path: Path  # what to load: a run, a checkpoint or an exported folder
    folder: Path  # with config.yaml and the weights
    is_generator: bool

    @property
    def kind(self) -> str:
        """What it is, for people."""
        return "generator" if self.is_generator else "tokenizer"

    def names(self) -> list[str]:
        """The files of the publication that hold it."""
        return [self.in_publication(name) for name in (CONFIG_FILE, WEIGHTS_FILE)]

    def in_publication(self, name: str) -> str:
        """The path of one of its files in the publication."""
        return f"{self.part}/{name}" if self.part else name

    def load(self, weights: str) -> PublishedNetwork:
        """The network, with what its card tells."""
        load = load_gpt if self.is_generator else load_tokenizer
        network = load(self.path, weights=weights)
        manifest = read_manifest(self.folder) or {}
        config = read_yaml(self.folder / CONFIG_FILE)
        card = card_of(self.folder, self.kind, network.provenance.fingerprint)
        return PublishedNetwork(self, network, config, manifest, recipe_of(self.folder), card)


@dataclass(frozen=True)
class PublishedNetwork:
    """A loaded network, and what is known of its training."""

    source: Source
    network: nn.Module
    training_config: DictConfig
    manifest: Mapping[str, Any]  # of its checkpoint; empty for an exported folder
    recipe: str | None  # path below configs/, without the suffix
    card: EarlierCard | None = None  # that lies beside these very weights

    @property
    def told(self) -> Mapping[str, str]:
        """{row: text} of what an earlier card says of its training."""
        return self.card.training_facts(self.source.kind) if self.card is not None else {}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its parameters."""
        return self.network.provenance.fingerprint

    @property
    def num_parameters(self) -> int:
        """How many numbers it has learned."""
        return num_parameters(self.network)

    def config(self) -> DictConfig:
        """The whole config of its training without places: also a recipe to train it again."""
        return public_config(self.training_config)

    def stamp(self) -> dict[str, Any]:
        """What the header of the weights says."""
        provenance = self.network.provenance
        stamp = public_stamp(provenance.stamp)
        return {**stamp, "weights": "ema"} if provenance.weights == "ema" else stamp

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes its files below `folder`; returns {path in the publication: file}."""
        place = folder / self.source.part
        place.mkdir(parents=True, exist_ok=True)
        config = self.config()
        write_weights(place, {"model": self.network.state_to_share()}, config, self.stamp())
        say_left_out(self.source.in_publication(CONFIG_FILE), self.training_config, config)
        return {self.source.in_publication(name): place / name for name in (CONFIG_FILE, WEIGHTS_FILE)}


def sources_of(run: Path) -> list[Source]:
    """The networks of a run: itself where it is one, else the tokenizer and the generator of a pipeline.

    `run` may be the name of a model that comes with the program: it has both. Raises UserError where there is none.
    """
    if is_address(run):
        raise UserError(f"{run} is on the hub already; name a folder here")
    if is_shipped(run):
        run = shipped_folder(run, PARTS["tokenizer"]).parent
    layout = RunLayout(run)
    parts = {folder.name: folder for folder in (layout.tokenizer, layout.generator) if folder.is_dir()}
    is_pipeline = bool(parts) and not ((run / "checkpoints").is_dir() or (run / WEIGHTS_FILE).is_file())
    if not is_pipeline:
        parts = {"": run}
    return [_source(part, path) for part, path in parts.items()]


def _source(part: str, path: Path) -> Source:
    """The network in one folder."""
    folder = find_weights(path, "auto", "network", hashed=False).folder
    name = OmegaConf.select(read_yaml(folder / CONFIG_FILE), "model.name")
    return Source(part, path, folder, is_generator=name in GENERATORS)


def recipe_of(folder: Path) -> str | None:
    """The recipe of the run that a checkpoint belongs to, where its last start named one of this project.

    Recipes of the user's own are not named: their paths are private.
    """
    for run in folder.parents[:3]:
        starts = read_lines(run / "starts.jsonl")
        if not starts:
            continue
        command = [str(argument) for argument in starts[-1].get("command", [])]
        named = [value for flag, value in pairwise(command) if flag == "--config"]
        for value in named:
            _, found, below = value.replace("\\", "/").removesuffix(".yaml").rpartition("configs/")
            name = below if found else value
            if (CONFIGS / f"{name}.yaml").is_file() and ".." not in name:
                return name
        return None
    return None
