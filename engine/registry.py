"""Components by name: registries are plain dicts, and a config names what it wants.

A section that picks a component has a field `name`, one field per component for that component's own section, and says
which registry it picks from:

    @dataclass(kw_only=True, slots=True)
    class QuantizerConfig:
        REGISTRY: ClassVar[Mapping[str, Any]] = QUANTIZERS
        name: str = "vq"
        vq: VQConfig = field(default_factory=VQConfig)

A component that a plug-in puts into the registry needs no field there: `extended_schema` adds one for its
`config_class`, and readers of configs (`engine.config`) extend every schema before they fill it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from typing import Any, TypeVar, get_type_hints

from engine.messages import ConfigError

T = TypeVar("T")


def unknown_name(registry: Collection[str], name: str, key: str) -> str:
    """The line for people about a component that the registry does not have."""
    return f"{key}={name!r} is not known; choose one of: {', '.join(sorted(registry))}"


def lookup(registry: Mapping[str, T], name: str, key: str) -> T:
    """`registry[name]`. Raises ConfigError, naming the config key and what it accepts, where it is not there."""
    if name not in registry:
        raise ConfigError(unknown_name(registry, name, key))
    return registry[name]


def selected_section(section: Any, registry: Mapping[str, Any], key: str) -> Any:
    """The sub-section of `section` that its `name` picks, or None where that component has no section.

    Raises ConfigError for an unknown name, and where the sub-section of another component was changed: it would be
    ignored in silence.
    """
    lookup(registry, section.name, f"{key}.name")
    for other in registry:
        if other == section.name or not hasattr(section, other):
            continue
        unused = getattr(section, other)
        if unused != type(unused)():
            raise ConfigError(
                f"{key}.{other} is set, but {key}.name={section.name!r} does not use it; "
                f"remove {key}.{other} (on a command line: {key}.{other}=null) or set {key}.name={other}"
            )
    return getattr(section, section.name, None)


# ------------------------------------------------------------------------------- sections of components from plug-ins
def extended_schema(schema: type[T]) -> type[T]:
    """`schema` with a field for every component of a registry that has a section of its own but no field yet.

    The result is `schema` itself where there is nothing to add, else a subclass that is the same object for the same
    set of components, so that configs stay equal and `isinstance` holds. Sections below are extended too.
    """
    sections = {name: section for name, section in section_types(schema).items() if is_dataclass(section)}
    extended = {name: extended_schema(section) for name, section in sections.items()}
    changed = {name: section for name, section in extended.items() if section is not sections[name]}

    known = {f.name for f in fields(schema)}
    classes = {name: getattr(item, "config_class", None) for name, item in registry_of(schema).items()}
    foreign = {name: cls for name, cls in classes.items() if is_dataclass(cls) and name not in known}

    if not changed and not foreign:
        return schema
    return _subclass(schema, tuple(changed.items()), tuple(foreign.items()))


def extended(section: T) -> T:
    """`section` with the sub-sections of all components that are registered now, those of plug-ins included."""
    schema = extended_schema(type(section))
    return section if type(section) is schema else _as_type(section, schema)


def registry_of(schema: type) -> Mapping[str, Any]:
    """The registry that a section picks from; empty for other sections."""
    return getattr(schema, "REGISTRY", {})


@functools.cache
def section_types(schema: type) -> dict[str, Any]:
    """{field: its type} of a dataclass, with annotations resolved."""
    hints = get_type_hints(schema)
    return {f.name: hints[f.name] for f in fields(schema)}


@functools.cache
def _subclass(schema: type, changed: tuple[tuple[str, type], ...], foreign: tuple[tuple[str, type], ...]) -> type:
    """A subclass of the dataclass `schema` whose fields `changed` have other types, with the fields `foreign` added."""
    by_name = {f.name: f for f in fields(schema)}
    new_fields = [(name, cls, _retyped(by_name[name], cls)) for name, cls in changed]
    new_fields += [(name, cls, field(default_factory=cls)) for name, cls in foreign]
    return make_dataclass(
        schema.__name__,
        new_fields,
        bases=(schema,),
        namespace={"__doc__": schema.__doc__, "__module__": schema.__module__},
        kw_only=True,
        slots=True,
    )


def _retyped(original: Field, section: type) -> Any:
    """The field `original` for its new type, a subclass of the old one; the default keeps its values."""
    make = original.default_factory
    if make is MISSING:
        return field(default_factory=section, metadata=original.metadata)
    return field(default_factory=lambda: _as_type(make(), section), metadata=original.metadata)


def _as_type(value: Any, section: type) -> Any:
    """The values of a section as an instance of its extended class; fields that it does not have keep their default."""
    types = section_types(section)
    values = {f.name: getattr(value, f.name) for f in fields(value)}
    for name, item in values.items():
        if is_dataclass(item) and type(item) is not types[name] and is_dataclass(types[name]):
            values[name] = _as_type(item, types[name])
    return section(**values)
