"""Merges trees into the defaults of a schema leaf by leaf, and tells every problem instead of the first one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, Generic, TypeVar, get_args

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.aliases import current_tree
from engine.config_types import accepted, shown
from engine.messages import ConfigError
from engine.registry import extended_schema, registry_of, section_types, unknown_name
from engine.validation import collecting, problems_of

T = TypeVar("T")


class Merger(Generic[T]):
    """Fills `schema` from sources, later ones winning; `problems` are the lines of what was wrong.

    A value that is wrong is left out, so that whatever else is wrong can be told too.
    """

    def __init__(self, schema: type[T]) -> None:
        self.schema = extended_schema(schema)
        self.defaults = OmegaConf.structured(self.schema)
        self.merged = OmegaConf.structured(self.schema)
        self.problems: list[str] = []

    def add(self, source: str, content: DictConfig | Sequence[str]) -> None:
        """Merges one source: a tree, or `key=value` items. `source` is its name in messages."""
        tree = content if isinstance(content, DictConfig) else self._parse(source, content)
        try:
            tree = current_tree(self.defaults, tree, source)
        except ConfigError as error:
            self.problems += error.problems
            return
        self._merge_section(self.merged, self.defaults, tree, source, "")

    def result(self) -> T | None:
        """The config, whose sections were checked; None where it cannot be built because of `problems`."""
        self._check_required()
        self._resolve(self.merged, self.defaults, "")
        if OmegaConf.missing_keys(self.merged):
            return None

        try:
            with collecting():
                config = OmegaConf.to_object(self.merged)
        except ConfigError as error:  # from a section that checks itself while it is built
            self.problems += error.problems
            return None
        self.problems += problems_of(config)
        self.problems += [line for line in _unknown_components(config) if not self._is_told(line)]
        return config

    # --------------------------------------------------------------------------------------------- one source
    def _parse(self, source: str, items: Sequence[str]) -> DictConfig:
        """The tree of `key=value` items; those that are not readable are problems."""
        readable = []
        for item in items:
            try:
                if "=" not in item or item.startswith("-"):
                    raise ConfigError(f"{item!r} is not of the form key=value")
                OmegaConf.from_dotlist([item])
                readable.append(item)
            except ConfigError as error:
                self.problems.append(f"{source}: {error}")
            except (YAMLError, UnicodeError, OmegaConfBaseException) as error:
                self.problems.append(f"{source}: {item!r} is not readable: {' '.join(str(error).split())}")
        return OmegaConf.from_dotlist(readable)

    def _merge_section(
        self, target: DictConfig, defaults: DictConfig, content: DictConfig, source: str, prefix: str
    ) -> None:
        """Merges the keys of `content` into the section `target`, whose dotted key is `prefix` (ends with a dot)."""
        types = section_types(OmegaConf.get_type(target))
        for name in map(str, content):
            key, given = f"{prefix}{name}", content._get_node(name, validate_access=False)
            place = f"{source}: {key}"

            if name not in types:
                value = "" if isinstance(given, DictConfig) else f"={shown(_plain(given))}"
                self.problems.append(f"{place}{value} is not a known key (accepted here: {', '.join(sorted(types))})")
            elif not is_dataclass(types[name]):
                self._set_value(target, name, given, types[name], place)
            elif _plain(given) is None:
                # Null stands for a section as if nobody had set it.
                target[name] = copy.deepcopy(defaults._get_node(name))
            elif isinstance(given, DictConfig):
                self._merge_section(target._get_node(name), defaults._get_node(name), given, source, f"{key}.")
            else:
                self.problems.append(f"{place}={shown(_plain(given))} must be {accepted(types[name])}")

    def _set_value(self, target: DictConfig, name: str, given: Any, hint: Any, place: str) -> None:
        """Puts a value that is no section in place, if its type accepts it."""
        element = next(iter(get_args(hint)), None)
        try:
            if is_dataclass(element) and isinstance(given, ListConfig):
                target[name] = self._sections(given, element, place)
                return
            if isinstance(given, DictConfig) and isinstance(target._get_node(name), ListConfig):
                raise ConfigError(place)
            target[name] = _plain(given)
        except (OmegaConfBaseException, ConfigError):
            self.problems.append(f"{place}={shown(_plain(given))} must be {accepted(hint)}")

    def _sections(self, items: ListConfig, schema: type, place: str) -> list[DictConfig]:
        """The items of a list of sections, each merged into the defaults of `schema`."""
        source, _, key = place.rpartition(": ")
        sections = []
        for index, item in enumerate(items):
            section = OmegaConf.structured(extended_schema(schema))
            if isinstance(item, DictConfig):
                self._merge_section(section, copy.deepcopy(section), item, source, f"{key}[{index}].")
            else:
                self.problems.append(f"{place}[{index}]={shown(item)} must be {accepted(schema)}")
            sections.append(section)
        return sections

    # --------------------------------------------------------------------------------------------- the whole
    def _check_required(self) -> None:
        """A problem for every key without default that no source sets."""
        for key in sorted(OmegaConf.missing_keys(self.merged)):
            parent, _, name = key.rpartition(".")
            section = OmegaConf.select(self.merged, parent) if parent else self.merged
            hint = section_types(OmegaConf.get_type(section))[name]
            self.problems.append(f"{key} is missing; it must be {accepted(hint)}")

    def _resolve(self, section: DictConfig, defaults: DictConfig, prefix: str) -> None:
        """Resolves interpolations such as `${oc.env:NAME}`; one that cannot be is a problem, its default stands in."""
        types = section_types(OmegaConf.get_type(section))
        for name in map(str, section):
            key, node = f"{prefix}{name}", section._get_node(name)
            if isinstance(node, DictConfig):
                self._resolve(node, defaults._get_node(name), f"{key}.")
                continue
            try:
                if isinstance(node, ListConfig):
                    OmegaConf.to_container(node, resolve=True)
                elif node._is_interpolation():
                    section[name] = section[name]
            except OmegaConfBaseException as error:
                self.problems.append(_unresolved(key, shown(_plain(node)), accepted(types[name]), error))
                section[name] = copy.deepcopy(defaults._get_node(name))

    def _is_told(self, line: str) -> bool:
        """Whether there is a problem of the same key and value already."""
        return any(line.partition(" ")[0] in problem for problem in self.problems)


def _plain(node: Any) -> Any:
    """The value of an OmegaConf node, without resolving interpolations; other values as they are."""
    if isinstance(node, DictConfig | ListConfig):
        return OmegaConf.to_container(node)
    return node._value() if hasattr(node, "_value") else node


def _unresolved(key: str, value: str, accepts: str, error: Exception) -> str:
    """The line about an interpolation without a value, or with one that does not fit."""
    text = str(error).split("\n")[0]
    if "nvironment variable" in text:
        return f"{key}={value}: {text}; source set_env_vars.sh or export it"
    return f"{key}={value} must be {accepts} ({text})"


def _unknown_components(config: Any, prefix: str = "") -> Iterator[str]:
    """A line for every section of `config` whose `name` is not in its registry. The default name is always accepted: it
    may stand for no component at all.
    """
    for name, section_type in section_types(type(config)).items():
        section = getattr(config, name)
        if not is_dataclass(section_type) or section is None:
            continue
        registry = registry_of(type(section))
        if registry and section.name not in {*registry, type(section)().name}:
            yield unknown_name(registry, section.name, f"{prefix}{name}.name")
        yield from _unknown_components(section, f"{prefix}{name}.")
