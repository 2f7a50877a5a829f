"""What the type of a config field accepts, in words."""

from __future__ import annotations

import re
import types
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf

ONE = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
SEVERAL = {bool: "true or false values", int: "whole numbers", float: "numbers", str: "texts"}


def accepted(hint: Any) -> str:
    """The values of a type, as they stand after "must be"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        words = [accepted(argument) for argument in arguments if argument is not type(None)]
        return " or ".join([*words, "null"] if type(None) in arguments else words)
    if origin is Literal:
        return f"one of: {', '.join(map(str, arguments))}"
    if origin is list:
        return f"a list of {_several(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} {_several(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to {_several(arguments[1])}"
    if is_dataclass(hint):
        return f"a section with some of: {', '.join(sorted(f.name for f in fields(hint)))}"
    return ONE.get(hint, "a value of type " + type_name(hint))


def _several(hint: Any) -> str:
    if is_dataclass(hint):
        return f"sections with: {', '.join(f.name for f in fields(hint))}"
    return SEVERAL.get(hint, f"values that are {accepted(hint)}")


def type_name(hint: Any) -> str:
    """A type as one writes it: `int | None`, `list[str]`, `QuantizerConfig`."""
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return re.sub(r"\b(\w+\.)+(?=\w)", "", text)


def shown(value: Any) -> str:
    """A value of a config as a message shows it: texts in quotes, null, true and false as in YAML."""
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
