"""Components by name: registries are plain dicts, and a config names what it wants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.config import T
from engine.messages import ConfigError


def lookup(registry: Mapping[str, T], name: str, key: str) -> T:
    """`registry[name]`, or an error that names the config key and what it accepts."""
    if name not in registry:
        raise ConfigError(f"{key}={name!r} is not known; choose one of: {', '.join(sorted(registry))}")
    return registry[name]


def transformer_size(section: Any, sizes: Mapping[str, tuple[int, int, int]], key: str) -> tuple[int, int, int]:
    """(width, layers, heads) of a transformer's config: of its named `size`, or its own; `key` names the section."""
    own = (section.width, section.layers, section.heads)
    if section.size is not None:
        if own != (None, None, None):
            raise ConfigError(f"{key}: give either size={section.size} or width, layers and heads, not both")
        return lookup(sizes, section.size, f"{key}.size")
    if None in own or min(own) < 1:
        raise ConfigError(f"{key}: give size (one of {', '.join(sizes)}) or width, layers and heads, each 1 or more")
    return own


def selected_section(section: Any, registry: Mapping[str, Any], key: str) -> Any:
    """The sub-section of `section` that its `name` picks; a changed sub-section that is not in use is an error."""
    lookup(registry, section.name, f"{key}.name")
    for other in registry:
        if other == section.name or not hasattr(section, other):
            continue
        value = getattr(section, other)
        if value != type(value)():
            raise ConfigError(
                f"{key}.{other} is set, but {key}.name={section.name!r} does not use it; "
                f"remove {key}.{other} (on a command line: {key}.{other}=null) or set {key}.name={other}"
            )
    return getattr(section, section.name, None)
