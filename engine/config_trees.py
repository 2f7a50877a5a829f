"""Configs as OmegaConf trees. To make a tree of a dataclass takes OmegaConf as long as all the rest of a merge; to copy
one, and to change a few values, takes a fraction of it.
"""

from __future__ import annotations

import copy
import functools
import threading
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, TupleConfig

CONTAINERS = (DictConfig, ListConfig, TupleConfig)


def default_tree(schema: type) -> DictConfig:
    """The defaults of a dataclass, as `OmegaConf.structured(schema)` gives them. Nobody may change the tree."""
    return _default_tree(schema, threading.get_ident())


@functools.cache
def _default_tree(schema: type, thread: int) -> DictConfig:
    """One per thread: to copy a tree, OmegaConf cuts its links for a moment, and another thread must not see that."""
    return OmegaConf.structured(schema)


def tree_of(config: Any) -> DictConfig:
    """`OmegaConf.structured(config)` of a dataclass tree: a copy of its defaults, in which other values are set."""
    tree = copy.deepcopy(default_tree(type(config)))
    _set_values(tree, config)
    return tree


def _set_values(tree: DictConfig, config: Any) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        node = tree._get_node(field.name)
        if _is_section(node, type(value)):
            _set_values(node, value)
        elif not is_same(plain_value(node), value):
            tree[field.name] = value


def _is_section(node: Any, schema: type) -> bool:
    """Whether a node is a tree of just this dataclass, with values."""
    is_tree = isinstance(node, DictConfig) and not node._is_none() and not node._is_missing()
    return is_tree and is_dataclass(schema) and OmegaConf.get_type(node) is schema


def plain_value(node: Any) -> Any:
    """The value of a node as a config has it, where nothing is looked up; a value that is no node as it is."""
    if isinstance(node, CONTAINERS):
        return OmegaConf.to_container(node)
    return node._value() if hasattr(node, "_value") else node


def is_same(value: Any, other: Any) -> bool:
    """Whether two plain values are written alike, which 1 and 1.0 are not. To set one takes OmegaConf much longer."""
    return repr(value) == repr(other)


def has_missing(tree: Any) -> bool:
    """Whether a tree may have values that are missing (`???`): one that looks up another value counts as missing, for
    that may be.
    """
    if tree._is_missing() or tree._is_interpolation():
        return True
    if not isinstance(tree, CONTAINERS) or tree._is_none():
        return False
    keys = tree if isinstance(tree, DictConfig) else range(len(tree))
    return any(has_missing(tree._get_node(key)) for key in keys)
