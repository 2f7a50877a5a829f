"""Merges trees into the defaults of a schema leaf by leaf, and tells every problem instead of the first one."""

from __future__ import annotations

import contextlib
import copy
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from engine.aliases import current_tree
from engine.config_trees import default_tree, has_missing, is_same, plain_value
from engine.config_types import describe_type, short_value, shortened, some_names
from engine.installation import variable_hint
from engine.messages import ConfigError
from engine.registry import extended_schema, registry_of, section_types, unknown_name
from engine.validation import collecting, keyed_problems

T = TypeVar("T")

STAND_INS = {bool: False, int: 1, float: 1.0, str: ""}  # for required values that are missing, to look at the rest
UNSET_VARIABLE = re.compile(r"Environment variable '(.*)' not found")  # what OmegaConf says of one


class UnsetVariable(NamedTuple):
    """A text of a config that needs an environment variable which is not set."""

    key: str
    text: Any  # as it is written, such as `${oc.env:IMGNET_ROOT}/train`
    variable: str


def unset_lines(unset: Sequence[UnsetVariable]) -> list[str]:
    """One line of an error per variable, with the keys that need it."""
    needed_by: dict[str, list[str]] = {}
    for key, text, variable in unset:
        needed_by.setdefault(variable, []).append(f"{key}={short_value(text)}")
    return [
        f"{', '.join(settings)}: the environment variable {variable} is not set; {variable_hint()}"
        for variable, settings in needed_by.items()
    ]


class Merger(Generic[T]):
    """Fills `schema` from sources, later ones winning, and collects the lines `problems` of what is wrong.

    A value that is wrong is left out, so that whatever else is wrong can be told too. With `accepts_unset`, a text with
    an environment variable that is not set is no problem: it stands as it is written, and `unset` tells of it.
    """

    def __init__(self, schema: type[T], *, accepts_unset: bool = False) -> None:
        self.schema = extended_schema(schema)
        self.unset: list[UnsetVariable] = []
        self._accepts_unset = accepts_unset
        self.defaults = default_tree(self.schema)
        self.merged = copy.deepcopy(self.defaults)
        self.problems: list[str] = []
        self._wrong_keys: set[str] = set()
        self._out_of_range: list[str] = []  # those of them that were merged, because their type is right
        self._before: dict[str, Any] = {}  # key -> the value that the last source which sets it replaced
        self._lacks_file = False  # a file was named in a way in which it is not read

    def add(self, source: str, content: DictConfig | Sequence[str]) -> None:
        """Merges one source: a tree, or `key=value` items. `source` is its name in messages."""
        tree = content
        if not isinstance(content, DictConfig):
            tree, problems = parse_items(content)
            self.problems += [f"{source}: {problem}" for problem in problems]
            self._lacks_file |= any(map(_is_yaml_name, content))
        try:
            tree = current_tree(self.defaults, tree, source)
        except ConfigError as error:
            self.problems += error.problems
            return
        self._merge_section(self.merged, self.defaults, tree, source, "")

    def result(self, check: Callable[[T], Any] | None = None) -> T | None:
        """The config, whose sections were checked; None where it cannot be built because of `problems`.

        If there are problems, `check` is asked for more: it raises a ConfigError about keys that do not fit together.
        """
        self._resolve(self.merged, self.defaults, "")
        self._check_required()
        try:
            config = self._built(self.merged)
        except ConfigError as error:  # from a section that checks itself while it is built
            self.problems += error.problems
            return None
        except MissingMandatoryValue:  # a key that no default can stand in for; it is told already
            return None

        for key, line in [*keyed_problems(config), *_unknown_components(config)]:
            if key not in self._wrong_keys:
                self._out_of_range.append(key)
                self._add_problem(key, line)
        if self.problems and check is not None and not self._lacks_file:
            self._check_rest(check)
        return config

    def _built(self, tree: DictConfig) -> T:
        """The config of a tree; what it lacks gets the default of the nearest key above that has one."""
        if has_missing(tree):
            tree = copy.deepcopy(tree)
            for missing in OmegaConf.missing_keys(tree):
                key = missing
                while key and OmegaConf.select(self.defaults, key) is None:
                    key = key.rpartition(".")[0].partition("[")[0]
                if key:
                    OmegaConf.update(tree, key, copy.deepcopy(OmegaConf.select(self.defaults, key)), merge=False)
        with collecting():
            return OmegaConf.to_object(tree)

    # --------------------------------------------------------------------------------------------- one source
    def _add_problem(self, key: str, line: str) -> None:
        """Adds the line about a wrong key, about which nothing else will be said."""
        self._wrong_keys.add(key)
        self.problems.append(line)

    def _merge_section(
        self, target: DictConfig, defaults: DictConfig, content: DictConfig, source: str, prefix: str
    ) -> None:
        """Merges the keys of `content` into the section `target`; `prefix` is its dotted key, with a dot at the end."""
        types = section_types(OmegaConf.get_type(target))
        self._check_names(content, list(types), source, prefix)
        for name in map(str, content):
            if name not in types:
                continue
            key = f"{prefix}{name}"
            node = content._get_node(name)
            if not is_dataclass(types[name]):
                self._set_value(target, name, node, types[name], source, key)
            elif plain_value(node) is None:
                # Null stands for a section as if nobody had set it.
                target[name] = copy.deepcopy(defaults._get_node(name))
            elif isinstance(node, DictConfig):
                self._merge_section(target._get_node(name), defaults._get_node(name), node, source, f"{key}.")
            else:
                self._add_problem(
                    key, f"{source}: {key}={short_value(plain_value(node))} must be {describe_type(types[name])}"
                )

    def _check_names(self, content: DictConfig, known: Sequence[str], source: str, prefix: str) -> None:
        """One problem for all keys of `content` that are not `known` in this section, without their values: the file
        may be another one than the user meant.
        """
        unknown = [str(name) for name in content if str(name) not in known]
        if not unknown:
            return
        keys = [f"{prefix}{name}" for name in unknown]
        near = difflib.get_close_matches(unknown[0], known, n=1) if len(unknown) == 1 else []
        hint = f"; did you mean {prefix}{near[0]}?" if near else ""

        verb = "is not a known key" if len(unknown) == 1 else "are not known keys"
        line = f"{source}: {some_names(keys)} {verb} (accepted here: {', '.join(sorted(known))}){hint}"
        self._wrong_keys |= set(keys)
        self.problems.append(line)

    def _set_value(self, target: DictConfig, name: str, node: Any, hint: Any, source: str, key: str) -> None:
        """Puts a value that is no section in place, if its type `hint` accepts it."""
        element = next(iter(get_args(hint)), None)
        if get_origin(hint) is list and is_dataclass(element) and isinstance(node, ListConfig):
            target[name] = self._sections(node, element, source, key)
            return

        # `key=` on a command line is an empty text, which YAML reads as null.
        if hint is str and plain_value(node) is None:
            target[name] = ""
            return

        # As in nearly all keys of the config of a run.
        value, present = plain_value(node), plain_value(target._get_node(name))
        if is_same(value, present):
            self._before[key] = present
            return

        before = copy.deepcopy(target._get_node(name))

        # A free mapping of names to values is merged name by name; anything else is replaced.
        is_mapping = get_origin(hint) is dict
        is_set = isinstance(node, DictConfig) == is_mapping and _update(target, name, value, merge=is_mapping)
        if is_set:
            self._before[key] = before
        else:
            self._add_problem(key, f"{source}: {key}={short_value(value)} must be {describe_type(hint)}")

    def _sections(self, items: ListConfig, schema: type, source: str, key: str) -> list[DictConfig]:
        """The items of a list of sections, each merged into the defaults of `schema`."""
        sections = []
        for index, item in enumerate(items):
            section = OmegaConf.structured(extended_schema(schema))
            if isinstance(item, DictConfig):
                self._merge_section(section, copy.deepcopy(section), item, source, f"{key}[{index}].")
            else:
                self._add_problem(
                    f"{key}[{index}]", f"{source}: {key}[{index}]={short_value(item)} must be {describe_type(schema)}"
                )
            sections.append(section)
        return sections

    # --------------------------------------------------------------------------------------------- the whole
    def _check_required(self) -> None:
        """A problem for every key without default that no source sets; a value of its type stands in where it can."""
        if not has_missing(self.merged):
            return
        for key in sorted(OmegaConf.missing_keys(self.merged)):
            parent, _, name = key.rpartition(".")
            section = OmegaConf.select(self.merged, parent) if parent else self.merged
            hint = section_types(OmegaConf.get_type(section))[name]
            if not {key, parent} & self._wrong_keys:
                self._add_problem(key, f"{key} is missing; it must be {describe_type(hint)}")
            self._wrong_keys.add(key)
            if hint in STAND_INS:
                section[name] = STAND_INS[hint]

    def _resolve(self, section: DictConfig, defaults: DictConfig, prefix: str) -> None:
        """Resolves interpolations such as `${oc.env:NAME}`; one that cannot be is a problem, its default stands in."""
        types = section_types(OmegaConf.get_type(section))
        for name in map(str, section):
            key = f"{prefix}{name}"
            node = section._get_node(name)
            if is_dataclass(types[name]):
                self._resolve(node, defaults._get_node(name), f"{key}.")
                continue

            try:
                if OmegaConf.is_config(node):
                    OmegaConf.to_container(node, resolve=True)
                elif node._is_interpolation():
                    section[name] = section[name]
            except OmegaConfBaseException as error:
                text = plain_value(node)
                variable = UNSET_VARIABLE.search(str(error))
                if self._accepts_unset and variable is not None and types[name] is str:
                    self._wrong_keys.add(key)
                    self.unset.append(UnsetVariable(key, text, variable[1]))
                    section[name] = text.replace("${", r"\${")  # the text itself, which nothing looks up again
                    continue
                self._add_problem(key, _unresolved(key, text, describe_type(types[name]), error))
                section[name] = copy.deepcopy(defaults._get_node(name))

    def _check_rest(self, check: Callable[[T], Any]) -> None:
        """Adds what `check` says of the config without the wrong values, but no lines about those.

        In the place of a wrong value stands what a recipe says beneath it. Where there is nothing beneath, a default
        might accuse values that are right, and nothing is added.
        """
        if not all(key in self._before for key in self._out_of_range):
            return
        tree = copy.deepcopy(self.merged)
        for key in self._out_of_range:
            OmegaConf.update(tree, key, self._before[key], merge=False)
        config = self._built(tree)
        if any(keyed_problems(config)):
            return
        try:
            check(config)
        except ConfigError as error:
            self.problems += [line for line in error.problems if not self._names_wrong_key(line)]

    def _names_wrong_key(self, line: str) -> bool:
        """Whether a line is about a wrong key, one below it, or the section around it as a whole.

        A longer name that begins like one of them is another key.
        """
        sections = {key.rpartition(".")[0] for key in self._out_of_range} - {""}
        return any(re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", line) for key in self._wrong_keys) or any(
            re.search(rf"(?<![\w.]){re.escape(section)}(?![\w.])", line) for section in sections
        )


def _is_yaml_name(text: str) -> bool:
    """Whether an argument is the name of a YAML file, and not a key with a value."""
    return "=" not in text and Path(text).suffix.lower() in (".yaml", ".yml")


def _update(section: DictConfig, name: str, value: Any, *, merge: bool) -> bool:
    """Sets a value of a section; returns whether its type accepts it. `merge` keeps other names of a mapping."""
    try:
        OmegaConf.update(section, name, value, merge=merge)
    except OmegaConfBaseException:
        return False
    return True


def parse_items(items: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """(tree of `key=value` items, problems of those that are not readable, which are left out)."""
    # All at once, as nearly always, or one by one to find those that are wrong.
    if all("=" in item and not item.startswith("-") for item in items):
        with contextlib.suppress(YAMLError, UnicodeError, OmegaConfBaseException):
            return OmegaConf.from_dotlist(list(items)), []

    tree = OmegaConf.create()
    readable: list[str] = []
    problems: list[str] = []
    for item in items:
        if "=" not in item or item.startswith("-"):
            hint = f"; a YAML file is read by --config {item}" if _is_yaml_name(item) else ""
            problems.append(f"{item!r} is not of the form key=value{hint}")
            continue
        try:
            tree = OmegaConf.from_dotlist([*readable, item])
            readable.append(item)
        except (YAMLError, UnicodeError, OmegaConfBaseException) as error:
            problems.append(f"{shortened(repr(item))} is not readable: {shortened(str(error))}")
    return tree, problems


def _unresolved(key: str, value: Any, accepts: str, error: Exception) -> str:
    """The line about an interpolation without a value, or with one that does not fit."""
    text = str(error).split("\n")[0]
    variable = UNSET_VARIABLE.search(text)
    if variable is not None:
        return unset_lines([UnsetVariable(key, value, variable[1])])[0]
    return f"{key}={short_value(value)} must be {accepts} ({text})"


def _unknown_components(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, line) of every section of `config` whose `name` is not in its registry. The default name is always
    accepted: it may stand for no component at all.
    """
    for name, section_type in section_types(type(config)).items():
        section = getattr(config, name)
        if not is_dataclass(section_type) or section is None:
            continue
        registry = registry_of(type(section))
        if registry and hasattr(section, "name") and section.name not in {*registry, type(section)().name}:
            key = f"{prefix}{name}.name"
            yield key, unknown_name(registry, section.name, key)
        yield from _unknown_components(section, f"{prefix}{name}.")
