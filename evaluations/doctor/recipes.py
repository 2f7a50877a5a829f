"""The shipped configs that a run is compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from autoregressive.training.config import GPTTrainConfig
from engine.aliases import current_tree
from engine.config import flatten, merge_config, read_yaml
from engine.config_trees import tree_of
from engine.installation import CONFIGS
from engine.recipe_names import recipe_files
from engine.yaml_files import read_layers
from tokenizer.training.config import TokenizerTrainConfig
from tokenizer.training.phases import phases_of

TRAINING_SECTIONS = {"model", "optim", "data"}  # what a YAML that trains a network has


@dataclass(frozen=True)
class Recipe:
    """A config, or one phase of it."""

    path: Path  # of the YAML
    phase: str  # name of the folder of its phase, or empty
    config: DictConfig
    model: dict[str, Any]  # the dotted keys under `model` that it sets, with their values
    bases: frozenset[Path]  # the YAMLs that it is laid over

    @property
    def name(self) -> str:
        """The path below configs/, or the name of a file from elsewhere."""
        return str(self.path.relative_to(CONFIGS)) if self.path.is_relative_to(CONFIGS) else self.path.name

    @property
    def title(self) -> str:
        """Name and phase, for people."""
        return f"{self.name} {self.phase}".rstrip()

    def matches(self, config: DictConfig) -> bool:
        """Whether a run of `config` has the whole `model` section of this recipe."""
        of_run = flatten(config.get("model", {}))
        return bool(self.model) and all(of_run.get(key) == value for key, value in self.model.items())


def current_config(tree: DictConfig) -> DictConfig:
    """Renames the old keys of a config of a tokenizer or a generator to the present ones.

    Other configs stay as they are.
    """
    if "loss" in tree:
        return current_tree(TokenizerTrainConfig, tree)
    if "codes" in tree.get("data", {}):
        return current_tree(GPTTrainConfig, tree)
    return tree


@lru_cache
def shipped_recipes() -> list[Recipe]:
    """Reads all YAMLs under configs/ that train a network by themselves."""
    return [recipe for path in recipe_files().values() for recipe in recipes_of(path)]


def recipes_of(path: Path) -> list[Recipe]:
    """Reads a YAML as a recipe, or as one recipe per phase.

    There is none if it lacks a section that training needs.
    """
    path = path.resolve()
    tree = current_config(read_yaml(path))
    bases = frozenset(Path(base).resolve() for base, _ in read_layers(path)[:-1])
    if not set(tree) >= TRAINING_SECTIONS:
        return []
    if not tree.get("phases"):
        return [Recipe(path, "", tree, flatten(tree.model), bases)]

    # The config of each phase, as training makes it. Folders from environment variables need not resolve here.
    whole = merge_config(TokenizerTrainConfig, [(str(path), _without_interpolations(tree))])
    phases = [tree_of(phase) for phase in phases_of(whole)]

    # A phase is told by the keys that the YAML sets, and by those that change from the whole config to any phase.
    base = flatten(tree_of(whole).model)
    models = [flatten(phase.model) for phase in phases]
    changed = {key for model in models for key, value in model.items() if value != base[key]}
    keys = {*flatten(tree.model), *changed}
    return [
        Recipe(path, f"phase_{number}", phase, {key: model[key] for key in keys}, bases)
        for number, (phase, model) in enumerate(zip(phases, models, strict=True), start=1)
    ]


def _without_interpolations(tree: DictConfig) -> DictConfig:
    """Copies `tree` without keys whose value comes from elsewhere, such as the environment."""
    tree = copy.deepcopy(tree)
    for key, value in flatten(tree).items():
        if isinstance(value, str) and "${" in value:
            section, _, name = key.rpartition(".")
            del (OmegaConf.select(tree, section) if section else tree)[name]
    return tree


def recipes_for(config: DictConfig, folder: Path) -> list[Recipe]:
    """Finds the most specific shipped recipes that a run of `config` in `folder` matches."""
    matching = [recipe for recipe in shipped_recipes() if recipe.matches(config)]
    most_keys = max((len(recipe.model) for recipe in matching), default=0)
    return closest([recipe for recipe in matching if len(recipe.model) == most_keys], folder)


def closest(recipes: Sequence[Recipe], folder: Path) -> list[Recipe]:
    """Selects the recipes of the phase and of the name of a run's folder.

    Where the name does not say, all are kept that are no variants. A variant is laid over another one of the recipes:
    it trains the same network in another way.
    """
    folder = folder.resolve()
    same_phase = [recipe for recipe in recipes if recipe.phase == folder.name] or list(recipes)
    names = (folder.name, folder.parent.name)
    same_name = [recipe for recipe in same_phase if recipe.path.stem in names]

    paths = {recipe.path for recipe in same_phase}
    return same_name or [recipe for recipe in same_phase if not recipe.bases & paths]
