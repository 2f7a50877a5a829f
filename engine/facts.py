"""Facts in nested dictionaries, as protocols, manifests and settings have them, and what differs between two."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def flat_facts(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested facts."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= flat_facts(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def without_facts(facts: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """A copy of nested facts that lacks those of the dotted `names`."""
    return {
        key: without_facts(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in facts.items()
        if f"{prefix}{key}" not in names
    }


def changed_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    """{dotted key: "key: value, then value"} of every fact that differs between two."""
    a, b = flat_facts(first), flat_facts(second)
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return {key: f"{key}: {a.get(key)!r}, then {b.get(key)!r}" for key in keys}
