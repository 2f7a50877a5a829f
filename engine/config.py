"""Configuration: dataclass defaults <- YAML files <- `key=value` (OmegaConf structured configs).

A config is a tree of dataclasses; every dataclass sits beside the component that it configures, and the root sits in
the entry's package. What is wrong with a config is told all at once in one `ConfigError`: unknown keys, wrong types,
values out of range, in all files and on the command line, each with its dotted key and what is accepted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf, TupleConfig

from engine import plugins
from engine.aliases import current_tree
from engine.config_merge import Merger, UnsetVariable, parse_items, unset_lines
from engine.config_trees import default_tree, plain_value, tree_of
from engine.config_types import short_value
from engine.messages import ConfigError, UserError, logger
from engine.recipe_names import recipe_file
from engine.registry import extended_schema
from engine.validation import raise_problems
from engine.yaml_files import Layer, read_layers, read_own_layer, read_yaml

__all__ = [
    "config_layers", "differences", "flatten", "load_config", "load_plugins", "load_sections", "merge_config",
    "read_yaml", "save_config", "to_yaml",
]  # fmt: skip

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------- reading
def load_config(
    schema: type[T],
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    check: Callable[[T], Any] | None = None,
    unset: list[UnsetVariable] | None = None,
) -> T:
    """The config `schema` from YAML files (later wins), then `key=value` overrides.

    The first file is laid over its `base`; that of a later one is left out, and the log says so. Plug-ins that a source
    names under `plugins` are imported first; where the schema has that key, it holds all that are loaded.

    Raises ConfigError with every problem, and if there is one, also with those that `check` tells by a ConfigError.
    With a list `unset`, texts whose environment variable is not set are no problem: they are added to the list, for
    those who look at a recipe on a machine without its data.
    """
    layers = config_layers(files)
    load_plugins(layers, overrides)

    sources = [*layers, ("command line", list(overrides))]
    try:
        config = merge_config(schema, sources, check, unset)
    except ConfigError as error:
        raise ConfigError(f"{error}{_resume_hint(sources)}", error.problems) from error
    if hasattr(config, "plugins"):
        config.plugins = [plugin.text() for plugin in plugins.loaded()]
    return config


def config_layers(files: Sequence[str | Path]) -> list[Layer]:
    """The trees of the files of a command line, in the order in which they are merged.

    A file may be named as a shipped recipe is, see `engine.recipe_names`.
    """
    paths = [recipe_file(file) for file in files]
    layers = read_layers(paths[0]) if paths else []
    for path in paths[1:]:
        base, tree = read_own_layer(path)
        if base is not None:
            logger.info("%s: its base %s is left out, for it is laid over %s", path, base, paths[0])
        layers.append((str(path), tree))
    return layers


def load_plugins(layers: Sequence[Layer], overrides: Sequence[str]) -> None:
    """Imports the plug-ins that YAML files (with paths relative to their folder) and overrides name."""
    sources = [(source, tree, Path(source).parent) for source, tree in layers]
    for source, tree, folder in [*sources, ("command line", parse_items(overrides)[0], Path.cwd())]:
        names = _plugin_list(tree, source)
        try:
            plugins.load(names, folder)
        except UserError as error:
            raise ConfigError(f"{source}: plugins={names}: {error}") from error


def _plugin_list(tree: DictConfig, source: str) -> list[str]:
    """The names under `plugins` of one source. Raises ConfigError where that is no list of texts."""
    names = OmegaConf.to_container(tree).get("plugins") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{source}: plugins={short_value(names)} must be a list of module names or paths of .py files"
        )
    return names


def _resume_hint(sources: Sequence[tuple[str, DictConfig | Sequence[str]]]) -> str:
    """The plug-ins that the run folder which a command continues was trained with, where they are not loaded."""
    run_dir = _run_dir_of(sources)
    if run_dir is None:
        return ""
    for folder in (run_dir, run_dir / "phase_1"):
        # A name that no file can have is told as a problem of loop.run_dir, not here.
        if os.path.isfile(folder / "config.yaml"):  # noqa: PTH113
            return plugins.missing_hint(_plugin_list(read_yaml(folder / "config.yaml"), str(folder)), folder)
    return ""


def _run_dir_of(sources: Sequence[tuple[str, DictConfig | Sequence[str]]]) -> Path | None:
    """The `loop.run_dir` that the last source with one sets, before anything is checked; None where no source does."""
    run_dir = None
    for _, content in sources:
        # Items that are not readable are told elsewhere.
        tree = content if isinstance(content, DictConfig) else parse_items(content)[0]
        loop = OmegaConf.to_container(tree).get("loop")
        if isinstance(loop, dict) and isinstance(loop.get("run_dir"), str):
            run_dir = Path(loop["run_dir"])
    return run_dir


def merge_config(
    schema: type[T],
    sources: Iterable[tuple[str, DictConfig | Sequence[str]]],
    check: Callable[[T], Any] | None = None,
    unset: list[UnsetVariable] | None = None,
) -> T:
    """Merges `(name, tree or key=value items)` pairs over the defaults of `schema`, a dataclass, and checks all values.

    Old spellings are read as the present ones (`engine.aliases`), and components of plug-ins have their sections.
    Raises ConfigError with every problem; see `load_config` for `check` and `unset`.
    """
    merger = Merger(schema, accepts_unset=unset is not None)
    for source, content in sources:
        merger.add(source, content)
    config = merger.result(check)
    if merger.problems:
        raise_problems([*merger.problems, *unset_lines(merger.unset)])
    if unset is not None:
        unset += merger.unset
    return config


def load_sections(schema: type[T], path: str | Path) -> T:
    """The sections of a YAML file or shipped recipe that the dataclass `schema` names; all others are left alone.

    For readers that need a part of a training config, such as `model`, on a machine where the rest (say a data folder
    from an environment variable) cannot be resolved. No plug-in is imported; where the file names one that is not
    loaded, the message of what is wrong says so.
    """
    schema = extended_schema(schema)
    path = recipe_file(path)
    sources = [(source, _restrict(current_tree(schema, tree, source), schema)) for source, tree in read_layers(path)]
    try:
        return merge_config(schema, sources)
    except ConfigError as error:
        hint = plugins.missing_hint(OmegaConf.to_container(read_yaml(path)).get("plugins"), Path(path).parent)
        raise ConfigError(f"{'; '.join(error.problems)}{hint}", error.problems) from error


def _restrict(tree: DictConfig, schema: type) -> DictConfig:
    """Keeps the sections that `schema` has, and of a section marked `partial` in its field's metadata the keys that its
    dataclass knows.
    """
    structured = default_tree(schema)
    restricted = OmegaConf.masked_copy(tree, [field.name for field in fields(schema) if field.name in tree])
    for field in fields(schema):
        section = restricted._get_node(field.name)
        if field.metadata.get("partial") and isinstance(section, DictConfig):
            known = [key for key in structured[field.name] if key in section]
            restricted[field.name] = OmegaConf.masked_copy(section, known)
    return restricted


# ---------------------------------------------------------------------------------------------------------- writing
def to_yaml(config: Any, *, resolve: bool = True) -> str:
    """The config, a dataclass tree or an OmegaConf tree, as YAML text. Without `resolve`, what could not be looked up
    when it was loaded (`unset` of `load_config`) stands as it was written.
    """
    tree = config if isinstance(config, DictConfig) else tree_of(config)
    return OmegaConf.to_yaml(tree, resolve=resolve)


def save_config(config: Any, path: str | Path) -> None:
    """Writes the resolved config."""
    Path(path).write_text(to_yaml(config), encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- comparing
def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a dataclass tree or an OmegaConf tree. A tuple is the same as a list."""
    if is_dataclass(config):
        config = tree_of(config)
    if isinstance(config, DictConfig):
        items: dict[str, Any] = {}
        for key in config:
            items.update(flatten(config._get_node(key), f"{prefix}.{key}" if prefix else str(key)))
        return items
    if isinstance(config, ListConfig | TupleConfig):
        return {prefix: list(OmegaConf.to_container(config))}
    value = plain_value(config)
    return {prefix: list(value) if isinstance(value, tuple) else value}


def differences(old: DictConfig, new: Any) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old value, new value)} where a saved config and a present one differ.

    A key that was added after the config was saved counts with its default. Keys of the saved config in an old spelling
    count under their present name.
    """
    defaults = flatten(default_tree(type(new)))
    before = defaults | flatten(current_tree(type(new), old))
    now = flatten(new)
    return {key: (before.get(key), now.get(key)) for key in sorted({*before, *now}) if before.get(key) != now.get(key)}
