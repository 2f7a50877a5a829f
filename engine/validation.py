"""Checks of config sections: all problems at once, each with its dotted key, its value, and what is accepted.

A section is a dataclass that derives from `Section` and yields its problems:

    @dataclass(kw_only=True, slots=True)
    class LoopConfig(Section):
        steps: int = 1000

        def problems(self) -> Iterator[Problem]:
            yield from at_least(self, "steps", 1)

A section that is built by hand raises at once. The reader of configs (`engine.config`) collects the problems of the
whole tree and raises them together, so that a user can fix everything in one go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from typing import Any

from engine.config_types import short_value
from engine.messages import ConfigError, UserError

_collecting: ContextVar[bool] = ContextVar("collecting", default=False)


@dataclass(frozen=True)
class Problem:
    """One wrong value: `key` is a field of the section (or a dotted key below it), `accepted` ends "must be ..."."""

    key: str
    value: Any
    accepted: str

    def text(self, prefix: str) -> str:
        """The line for people; `prefix` is the dotted key of the section, or empty."""
        key = f"{prefix}.{self.key}" if prefix else self.key
        return f"{key}={short_value(self.value)} must be {self.accepted}"


class Section:
    """Base of all config sections; see the module docstring."""

    __slots__ = ()

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the section's own fields. Sub-sections are asked separately."""
        return iter(())

    def __post_init__(self) -> None:
        if not _collecting.get():
            raise_problems([problem.text("") for problem in self.problems()], type(self).__name__)


@contextmanager
def collecting() -> Iterator[None]:
    """Sections built inside do not raise; ask `problems_of` afterwards."""
    token = _collecting.set(True)
    try:
        yield
    finally:
        _collecting.reset(token)


def problems_of(config: Any, prefix: str = "") -> list[str]:
    """The problems of a section and of all sections below it, as lines with dotted keys."""
    return [line for _, line in keyed_problems(config, prefix)]


def keyed_problems(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, line) of every problem of a section and of all sections below it."""
    if isinstance(config, Section):
        for problem in config.problems():
            if not isinstance(problem, Problem):
                raise UserError(
                    f"{type(config).__name__}.problems yields {problem!r}; it must yield "
                    "engine.validation.Problem(key, value, accepted)"
                )
            yield (f"{prefix}.{problem.key}" if prefix else problem.key), problem.text(prefix)
    if not is_dataclass(config):
        return

    for field in fields(config):
        key = f"{prefix}.{field.name}" if prefix else field.name
        value = getattr(config, field.name)
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from keyed_problems(item, f"{key}[{index}]")
        else:
            yield from keyed_problems(value, key)


def raise_problems(lines: list[str], where: str = "") -> None:
    """Raises one `ConfigError` that lists all `lines`, if there are any."""
    if not lines:
        return
    if len(lines) == 1:
        raise ConfigError(lines[0])
    heading = f"{where or 'the config'} has {len(lines)} problems:"
    raise ConfigError("\n  ".join([heading, *lines]), lines)


# ------------------------------------------------------------------------------------------------ common checks
def is_number(value: Any) -> bool:
    """Whether a value can be compared with numbers, also one of NumPy. A text, None and a truth value cannot.

    Configs and flags have numbers where they must be; a section that is built by hand may hold anything.
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def at_least(section: Any, name: str, low: float) -> Iterator[Problem]:
    """`section.name` must be `low` or more. NaN is not."""
    value = getattr(section, name)
    if not (is_number(value) and value >= low):
        yield Problem(name, value, f"{low} or more")


def above(section: Any, name: str, low: float) -> Iterator[Problem]:
    """`section.name` must be greater than `low`. NaN is not."""
    value = getattr(section, name)
    if not (is_number(value) and value > low):
        yield Problem(name, value, f"above {low}")


def in_range(
    section: Any, name: str, low: float, high: float, *, open_left: bool = False, open_right: bool = False
) -> Iterator[Problem]:
    """`section.name` must lie in [low, high], without the ends that are open. NaN does not."""
    value = getattr(section, name)
    above_low = is_number(value) and (value > low if open_left else value >= low)
    below_high = is_number(value) and (value < high if open_right else value <= high)
    if not (above_low and below_high):
        left, right = "(" if open_left else "[", ")" if open_right else "]"
        yield Problem(name, value, f"in {left}{low}, {high}{right}")


def one_of(section: Any, name: str, accepted: Collection[str]) -> Iterator[Problem]:
    """`section.name` must be one of the names `accepted`, such as the keys of a registry."""
    value = getattr(section, name)
    if not (isinstance(value, str) and value in accepted):
        yield Problem(name, value, f"one of: {', '.join(sorted(accepted))}")
