"""Which command trains what a recipe describes: told by sections that only one of them has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from engine.config_types import some_names
from engine.messages import ConfigError
from engine.recipe_names import recipe_file
from engine.yaml_files import read_layers, read_own_layer


@dataclass(frozen=True)
class Trainer:
    """A command that trains, and the dotted keys of which a recipe for it has at least one."""

    module: str
    trains: str  # what it trains, for people
    keys: tuple[str, ...]

    def fits(self, tree: DictConfig) -> str | None:
        """The first of its keys that `tree` has; None where it has none."""
        return next((key for key in self.keys if _has(tree, key)), None)


# The first that fits counts. A probe and the classifier have sections of the others too, so they come first.
TRAINERS = (
    Trainer("evaluations.ar_probe", "AR probing of a tokenizer", ("gpt_configs", "probe_configs")),
    Trainer("evaluations.linear_probe", "a linear probe", ("probe", "network")),
    Trainer("evaluations.text_reader", "a reader of drawn text", ("data.num_crops",)),
    Trainer("evaluations.classifier", "a classifier of digits", ("model.max_shift",)),
    Trainer("autoregressive.train", "a generator (GPT)", ("data.codes", "data.tokenizer", "data.tokenize")),
    Trainer("tokenizer.train", "a tokenizer", ("model.quantizer", "loss", "semantic", "phases")),
)


def _has(tree: DictConfig, key: str) -> bool:
    """Whether a tree has a dotted key, whatever its value is."""
    section, _, name = key.rpartition(".")
    parent = OmegaConf.select(tree, section) if section else tree
    return isinstance(parent, DictConfig) and name in parent


def recipe_tree(files: Sequence[str | Path]) -> DictConfig:
    """The recipes and files of a command line as one tree; later ones win, and only the first brings its base along."""
    paths = [recipe_file(file) for file in files]
    trees = [tree for _, tree in read_layers(paths[0])] + [read_own_layer(path)[1] for path in paths[1:]]
    return OmegaConf.merge(*trees)


def trainer_of(tree: DictConfig, name: str) -> tuple[Trainer, str]:
    """(the command that trains a recipe, the key that tells). `name` is that of the recipe, for messages.

    Raises ConfigError where no key tells.
    """
    for trainer in TRAINERS:
        key = trainer.fits(tree)
        if key is not None:
            return trainer, key
    accepted = "; ".join(f"{' or '.join(trainer.keys)} for {trainer.trains}" for trainer in TRAINERS)
    sections = some_names([*map(str, tree)], limit=8) or "none"
    raise ConfigError(
        f"{name} does not say what it trains: it has the sections {sections}. One is needed of: {accepted}"
    )
