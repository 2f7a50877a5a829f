"""Configuration: dataclass defaults <- YAML files <- `key=value` (OmegaConf structured configs).

A config is a tree of dataclasses; every dataclass sits beside the component that it configures, and the root sits in
the entry module. An unknown key, a wrong type, or a changed section of a variant that is not in use is a `ConfigError`
that names the key and what is accepted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf, TupleConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.aliases import current_tree
from engine.messages import ConfigError
from engine.validation import collecting, problems_of, raise_problems

T = TypeVar("T")


def _translate(error: Exception, source: str) -> ConfigError:
    """An OmegaConf error as one line: where, which key, what was found."""
    text = str(error).split("\n")[0]
    key = getattr(error, "full_key", None)
    return ConfigError(f"{source}: {key + ': ' if key else ''}{text}")


def _accepted(schema: Any, key: str) -> str:
    """The keys that the section around `key` accepts, for the message of an unknown key."""
    node = OmegaConf.select(schema, key.rpartition(".")[0]) if "." in key else schema
    return f" (accepted here: {', '.join(sorted(map(str, node)))})" if isinstance(node, DictConfig) else ""


def _check_shape(schema: DictConfig, content: DictConfig, source: str, prefix: str = "") -> None:
    """An error where `content` has a plain value in the place of a section or a list."""
    for name in content:
        if name not in schema:
            continue  # the merge names it
        key, own, given = f"{prefix}{name}", schema._get_node(name), content._get_node(name)
        if isinstance(own, DictConfig) and isinstance(given, DictConfig):
            _check_shape(own, given, source, f"{key}.")
        elif isinstance(own, DictConfig):
            raise ConfigError(f"{source}: {key}={given} must be a section with some of: {', '.join(sorted(own))}")
        elif isinstance(own, ListConfig) and not isinstance(given, ListConfig):
            raise ConfigError(f"{source}: {key}={given} must be a list")
        elif isinstance(own, TupleConfig):
            values = list(given) if isinstance(given, ListConfig) else []
            if len(values) != len(own) or not all(isinstance(v, int | float) for v in values):
                raise ConfigError(f"{source}: {key}={given} must be a list of {len(own)} numbers")


def read_yaml(path: str | Path) -> DictConfig:
    """One YAML file as an OmegaConf tree. A path that does not exist suggests the nearest name."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.5)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"config file {path} does not exist{hint}")
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OSError, ValueError, OmegaConfBaseException) as error:  # OSError: a bare number, says OmegaConf
        raise ConfigError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of keys, not {type(node).__name__}")
    return node


def merge_config(schema: type[T], sources: Iterable[tuple[str, DictConfig | Sequence[str]]]) -> T:
    """Merges `(name, tree or dotlist)` pairs over the defaults of the dataclass `schema` and checks every value."""
    merged = base = OmegaConf.structured(schema)
    for source, content in sources:
        try:
            if not isinstance(content, DictConfig):
                for item in content:
                    if "=" not in item or item.startswith("-"):
                        raise ConfigError(f"{source}: {item!r} is not of the form key=value")
                content = OmegaConf.from_dotlist(list(content))
            content = current_tree(base, content, source)
            for key in (k for k, value in flatten(content).items() if value is None):
                if isinstance(OmegaConf.select(base, key), DictConfig):  # null: a section as if nobody had set it
                    OmegaConf.update(merged, key, OmegaConf.select(base, key), merge=False)
                    OmegaConf.update(content, key, {})
            _check_shape(base, content, source)
            merged = OmegaConf.merge(merged, content)
        except OmegaConfBaseException as error:
            problem = _translate(error, source)
            key = getattr(error, "full_key", None) or ""
            raise ConfigError(f"{problem}{_accepted(base, key) if 'not in' in str(problem) else ''}") from error
        except (YAMLError, UnicodeError) as error:
            raise ConfigError(f"{source}: not readable: {' '.join(str(error).split())}") from error
    try:
        with collecting():
            config = OmegaConf.to_object(merged)
        raise_problems(problems_of(config))
        return config
    except OmegaConfBaseException as error:
        hint = "; source set_env_vars.sh or export it" if "Environment variable" in str(error) else ""
        raise ConfigError(f"{_translate(error, 'config')}{hint}") from error


def load_config(schema: type[T], files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> T:
    """The config `schema` from YAML files (later wins), then `key=value` overrides."""
    sources: list[tuple[str, Any]] = [(str(path), read_yaml(path)) for path in files]
    return merge_config(schema, [*sources, ("command line", list(overrides))])


def load_sections(schema: type[T], path: str | Path) -> T:
    """The sections of a YAML file that the dataclass `schema` names; all others are left alone.

    For readers that need a part of a training config, such as `model`, on a machine where the rest (say a data folder
    from an environment variable) cannot be resolved.
    """
    tree = current_tree(schema, read_yaml(path), str(path))
    kept = {field.name: tree._get_node(field.name) for field in fields(schema) if field.name in tree}
    return merge_config(schema, [(str(path), _restrict(OmegaConf.create(kept), schema))])


def _restrict(tree: DictConfig, schema: type) -> DictConfig:
    """Keeps of each section marked `partial` in its field metadata only the keys that its dataclass knows."""
    for field in fields(schema):
        if field.metadata.get("partial") and isinstance(tree.get(field.name), DictConfig):
            known = OmegaConf.structured(schema)[field.name]
            tree[field.name] = OmegaConf.masked_copy(tree[field.name], [k for k in known if k in tree[field.name]])
    return tree


def to_yaml(config: Any) -> str:
    """The resolved config as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)


def save_config(config: Any, path: str | Path) -> None:
    """Writes the resolved config."""
    Path(path).write_text(to_yaml(config), encoding="utf-8")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a dataclass tree or an OmegaConf tree."""
    if is_dataclass(config):
        config = OmegaConf.structured(config)
    if isinstance(config, DictConfig):
        items: dict[str, Any] = {}
        for key in config:
            items.update(flatten(config._get_node(key), f"{prefix}.{key}" if prefix else str(key)))
        return items
    if isinstance(config, ListConfig):
        return {prefix: OmegaConf.to_container(config)}
    value = config._value() if hasattr(config, "_value") else config
    return {prefix: list(value) if isinstance(value, tuple) else value}


def differences(old: DictConfig, new: Any) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old value, new value)} where a saved config and a present one differ. A key that is younger than
    the saved config had its default.
    """
    a, b = flatten(OmegaConf.structured(type(new))) | flatten(current_tree(type(new), old)), flatten(new)
    return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def check_all(problems: Sequence[str]) -> None:
    """Raises one `ConfigError` that lists all `problems`, if there is any."""
    if problems:
        heading = ["the config does not fit together:"] if len(problems) > 1 else []
        raise ConfigError("\n  ".join([*heading, *problems]))
