"""`--help-config KEY`: what a key of a config means, by the comment beside its field, its type, default and checks."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import io
import math
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from engine.aliases import current_key
from engine.config_types import describe_type, format_value, type_name
from engine.messages import ConfigError
from engine.registry import extended_schema, registry_of, section_types
from engine.validation import Section, collecting

ALL = "all"
UNUSED_NAME = "\0"  # no component and no choice has this name


@dataclass(frozen=True)
class Entry:
    """A key of a config: the section class that has it, its type and its default."""

    key: str
    section: type
    name: str
    hint: Any
    default: Any

    @property
    def is_section(self) -> bool:
        return is_dataclass(self.hint)


def describe(schema: type, key: str) -> str:
    """The explanation of a dotted key of the root config `schema`; of a section with its keys; of everything for `all`.

    Raises ConfigError, with the nearest names, for a key that is not there.
    """
    schema = extended_schema(schema)
    key = current_key(schema, key)
    entries = {entry.key: entry for entry in _entries(schema, OmegaConf.structured(schema), "")}
    if key == ALL:
        return "\n".join(_text(entry) for entry in entries.values())
    if key not in entries:
        raise ConfigError(_unknown(key, list(entries)))
    below = [entry for entry in entries.values() if entry.key.rpartition(".")[0] == key]
    return "\n".join(_text(entry) for entry in [entries[key], *below])


def _entries(section: type, defaults: Any, prefix: str) -> Iterator[Entry]:
    """Every key below a section, in the order of the fields; sections come before their own keys."""
    for name, hint in section_types(section).items():
        node = defaults._get_node(name)
        if is_dataclass(hint):
            yield Entry(f"{prefix}{name}", section, name, hint, None)
            yield from _entries(hint, node, f"{prefix}{name}.")
        else:
            default = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()
            yield Entry(f"{prefix}{name}", section, name, hint, default)


def _unknown(key: str, known: list[str]) -> str:
    """The message of a key that is not there: similar keys, or what the nearest section around it has."""
    parent, _, name = key.rpartition(".")
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    here = [other.removeprefix(prefix) for other in known if other.rpartition(".")[0] == parent]

    near = [f"{prefix}{other}" for other in difflib.get_close_matches(name, here, n=2, cutoff=0.65)]
    near += [other for other in known if other.rpartition(".")[2] == name][:3]
    if near:
        return f"--help-config {key}: no such key; did you mean {' or '.join(dict.fromkeys(near))}?"
    return f"--help-config {key}: no such key; {parent or 'the config'} has: {', '.join(here)}"


# ------------------------------------------------------------------------------------------------------ one key
def _text(entry: Entry) -> str:
    """The lines about one key."""
    comment = _comments(entry.section).get(entry.name, "")
    if entry.is_section:
        summary = " ".join((inspect.getdoc(entry.hint) or "").split("\n\n")[0].split())
        lines = [f"{entry.key}: section; --help-config {entry.key} lists its keys", f"    {comment}", f"    {summary}"]
    else:
        default = "required" if entry.default == "???" else f"default {format_value(entry.default)}"
        values = _accepted_by_checks(entry) or describe_type(entry.hint)
        lines = [f"{entry.key}: {type_name(entry.hint)}, {default}", f"    {comment}", f"    accepted: {values}"]
    return "\n".join(line for line in lines if line.strip())


def _accepted_by_checks(entry: Entry) -> str:
    """What the registry or the checks of the section accept for a key; empty where they do not restrict it.

    The checks are asked by a value that no range and no list of choices contains.
    """
    registry = registry_of(entry.section)
    if registry and entry.name == "name":
        return f"one of: {', '.join(sorted({*registry, entry.default}))}"
    if not issubclass(entry.section, Section):
        return ""

    impossible = _impossible_value(entry.hint)
    if impossible is None:
        return ""
    try:
        with collecting():
            section = entry.section()
            setattr(section, entry.name, impossible)
            problems = [problem for problem in section.problems() if problem.key == entry.name]
    except (ConfigError, TypeError, ValueError, ArithmeticError):
        return ""  # a check that cannot be asked this way says nothing here
    return " and ".join(dict.fromkeys(problem.accepted for problem in problems))


def _impossible_value(hint: Any) -> Any:
    """A value that no range and no list of choices of this type contains; None for types that have no such value."""
    words = type_name(hint).replace(" ", "").split("|")
    if "str" in words:
        return UNUSED_NAME
    if "int" in words or "float" in words:
        return math.nan
    return None


@functools.cache
def _comments(section: type) -> dict[str, str]:
    """{field: comment} of a section: what stands beside the field in the source, or in the lines above it."""
    comments: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if is_dataclass(cls):
            comments |= {name: text for name, text in _own_comments(cls).items() if text}
    return {f.name: comments.get(f.name, "") for f in fields(section)}


def _own_comments(cls: type) -> dict[str, str]:
    """{field: comment} of the fields that the source of `cls` itself declares; empty where there is no source."""
    module = inspect.getmodule(cls)
    if module is None or not getattr(module, "__file__", None):
        return {}
    source = Path(module.__file__).read_text(encoding="utf-8")
    body = _class_body(ast.parse(source), cls.__qualname__)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: (t.string.lstrip("# "), t.line.lstrip().startswith("#")) for t in tokens if _is_comment(t)}

    by_field = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            beside = [comments[n][0] for n in range(node.lineno, node.end_lineno + 1) if n in comments]
            by_field[node.target.id] = " ".join([*_lines_above(comments, node.lineno), *beside])
    return by_field


def _is_comment(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.COMMENT


def _lines_above(comments: dict[int, tuple[str, bool]], line: int) -> list[str]:
    """The comments that fill the lines directly above `line`."""
    texts = []
    while comments.get(line - 1, ("", False))[1]:
        line -= 1
        texts.append(comments[line][0])
    return texts[::-1]


def _class_body(tree: ast.Module, qualified_name: str) -> list[ast.stmt]:
    """The statements of a class of a module, by its dotted name; empty where it is not there."""
    body = tree.body
    for name in qualified_name.replace("<locals>.", "").split("."):
        body = next((n.body for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), [])
    return body
