"""What the type of a config field accepts, in words."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf

MAX_VALUE = 80  # letters of a value, or of a name, that a message shows: a file may be no config at all
SINGULAR = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
PLURAL = {bool: "true or false values", int: "whole numbers", float: "numbers", str: "texts"}


def describe_type(hint: Any) -> str:
    """The values of a type, as they stand after "must be"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        words = [describe_type(argument) for argument in arguments if argument is not type(None)]
        return " or ".join([*words, "null"] if type(None) in arguments else words)
    if origin is Literal:
        return f"one of: {', '.join(map(str, arguments))}"
    if origin is list:
        return f"a list of {_describe_elements(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} {_describe_elements(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to {_describe_elements(arguments[1])}"
    if is_dataclass(hint):
        return f"a section with some of: {', '.join(sorted(f.name for f in fields(hint)))}"
    return SINGULAR.get(hint, "a value of type " + type_name(hint))


def _describe_elements(hint: Any) -> str:
    """The values of the elements of a list or mapping, as they stand after "a list of"."""
    if is_dataclass(hint):
        return f"sections with: {', '.join(f.name for f in fields(hint))}"
    return PLURAL.get(hint, f"values that are {describe_type(hint)}")


def type_name(hint: Any) -> str:
    """A type as one writes it: `int | None`, `list[str]`, `QuantizerConfig`."""
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return re.sub(r"\b(\w+\.)+(?=\w)", "", text)


def format_value(value: Any) -> str:
    """A value of a config as a message shows it: texts in quotes, null, true and false as in YAML."""
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def short_value(value: Any) -> str:
    """`format_value` for messages about what a user wrote: the beginning of a long one."""
    return shortened(format_value(value))


def shortened(text: str) -> str:
    """The beginning of a text, on one line; three dots stand for the rest."""
    line = re.sub(r"\s*\n\s*", " ", text[: 2 * MAX_VALUE].strip())
    return line if len(line) <= MAX_VALUE else f"{line[: MAX_VALUE - 3]}..."


def some_names(names: Sequence[str], limit: int = 3) -> str:
    """Names in a message: the first few, and how many others there are."""
    others = len(names) - limit
    return ", ".join(map(shortened, names[:limit])) + (f" and {others} more" if others > 0 else "")
