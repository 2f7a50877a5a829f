"""The size of a generator in its section: one of the published names, or number by number.

A section has a table `SIZES` (name -> numbers), a key `size`, and one key per number; all of these are null where the
section is that of a model that is not in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.messages import ConfigError
from engine.validation import Problem, at_least, one_of


def _given(section: Any, keys: Sequence[str]) -> Mapping[str, int]:
    """Those of the numbers that are given."""
    return {key: getattr(section, key) for key in keys if getattr(section, key) is not None}


def size_problems(section: Any, keys: Sequence[str]) -> Iterator[Problem]:
    """What is wrong with `size` and the numbers `keys`, of which all or none are given."""
    given = _given(section, keys)
    if section.size is not None:
        yield from one_of(section, "size", section.SIZES)
        if given:
            yield Problem("size", section.size, f"null where {', '.join(given)} is given")
        return

    # Nothing at all is the section of a model that is not in use; `chosen_size` refuses to build it.
    for key in keys if given else ():
        if key in given:
            yield from at_least(section, key, 1)
        else:
            yield Problem(key, None, f"given with {', '.join(given)}, where there is no size")


def is_given_in_numbers(section: Any, keys: Sequence[str]) -> bool:
    """Whether there is no `size`, and every number is given and 1 or more."""
    given = _given(section, keys)
    return section.size is None and len(given) == len(keys) and min(given.values()) >= 1


def head_problems(section: Any, keys: Sequence[str]) -> Iterator[Problem]:
    """A width, given in numbers, that the heads do not divide."""
    if is_given_in_numbers(section, keys) and section.width % section.heads:
        yield Problem("width", section.width, f"divisible by heads={section.heads}")


def chosen_size(section: Any, keys: Sequence[str], name: str) -> tuple[int, ...]:
    """The numbers `keys`. Raises ConfigError where neither they nor a size are given in the section `name`."""
    if section.size is not None:
        return section.SIZES[section.size]
    if not _given(section, keys):
        numbers = f"{', '.join(keys[:-1])} and {keys[-1]}"
        raise ConfigError(f"{name}: give size (one of {', '.join(section.SIZES)}) or {numbers}")
    return tuple(getattr(section, key) for key in keys)
