"""`--help-config KEY`: comment, type, default and accepted values of a key, from the places where they are written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import pytest
from recipes import ENTRIES

from autoregressive.train import main as train_gpt
from engine.config import flatten
from engine.config_help import describe
from engine.messages import ConfigError
from engine.validation import Problem, Section, at_least, in_range, one_of
from tokenizer.train import main as train_tokenizer


@dataclass(kw_only=True, slots=True)
class Base(Section):
    """What two sections share."""

    depth: int = 2  # number of layers

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "depth", 1)


@dataclass(kw_only=True, slots=True)
class Part(Base):
    """A section.

    With more to say.
    """

    REGISTRY: ClassVar[Mapping[str, Any]] = {"fast": object, "slow": object}

    name: str = "none"  # none | fast | slow
    # A comment above,
    # on two lines,
    rate: float = 0.5  # and one beside
    kind: Literal["a", "b"] = "a"
    mode: str = "x"  # how
    sizes: list[int] = field(
        default_factory=lambda: [1, 2]  # inside
    )
    limit: int | None = None
    strange: int = 3

    def problems(self) -> Iterator[Problem]:
        yield from Base.problems(self)
        yield from in_range(self, "rate", 0, 1, open_left=True)
        yield from one_of(self, "mode", ("x", "y"))
        if int(self.strange) % 2 == 0:  # cannot be asked with NaN
            yield Problem("strange", self.strange, "odd")


@dataclass(kw_only=True, slots=True)
class Required:
    """An item of a list."""

    steps: int


@dataclass(kw_only=True, slots=True)
class Root:
    """A root config."""

    part: Part = field(default_factory=Part)  # the part
    items: list[Required] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    count: int = 3


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("part.depth", ["part.depth: int, default 2", "number of layers", "accepted: 1 or more"]),
        ("part.rate", ["float, default 0.5", "A comment above, on two lines, and one beside", "accepted: in (0, 1]"]),
        ("part.kind", ["Literal['a', 'b'], default 'a'", "accepted: one of: a, b"]),
        ("part.mode", ["str, default 'x'", "how", "accepted: one of: x, y"]),
        ("part.name", ["none | fast | slow", "accepted: one of: fast, none, slow"]),
        ("part.sizes", ["list[int], default [1, 2]", "inside", "accepted: a list of whole numbers"]),
        ("part.limit", ["int | None, default null", "accepted: a whole number or null"]),
        ("part.strange", ["accepted: a whole number"]),
        ("items", ["list[Required], default []", "accepted: a list of sections with: steps"]),
        ("weights", ["dict[str, float], default {}", "accepted: a mapping of names to numbers"]),
        ("part", ["part: section", "the part", "A section.", "part.depth: int", "part.strange: int"]),
        ("all", ["part: section", "part.rate: float", "count: int, default 3"]),
    ],
)
def test_a_key_is_explained(key, lines):
    text = describe(Root, key)
    assert all(line in text for line in lines), text
    assert "With more to say" not in text


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("part.dpeth", r"^--help-config part\.dpeth: no such key; did you mean part\.depth\?$"),
        ("rate", r"did you mean part\.rate\?$"),
        ("part.xyz", r"no such key; part has: depth, name, rate, kind, mode, sizes, limit, strange$"),
        ("nothing.at.all", r"no such key; the config has: part, items, weights, count$"),
    ],
)
def test_an_unknown_key_suggests_near_ones(key, expected):
    with pytest.raises(ConfigError, match=expected):
        describe(Root, key)


@pytest.mark.parametrize("kind", ENTRIES)
def test_every_key_of_every_entry_is_explained(kind):
    """Each with its type and default, without importing or loading anything else."""
    schema = ENTRIES[kind][1]
    text = describe(schema, "all")
    for key in flatten(schema()):
        assert f"{key}: " in text
    assert all(f"{f.name}: " in text for f in fields(schema))


def test_training_entries_print_it(entry):
    """Without a config; an unknown key ends with code 2. Old names are those of the present keys."""
    code, out, _ = entry(train_tokenizer, "--help-config", "loop.steps")
    assert code == 0 and out.startswith("loop.steps: int, default 1000\n") and "1 or more" in out
    code, out, err = entry(train_gpt, "--help-config", "loop.stpes")
    assert (code, out) == (2, "") and "did you mean loop.steps?" in err
    assert entry(train_tokenizer, "--help-config", "loss.discriminator.base_channels")[1].startswith(
        "loss.discriminator.patchgan.base_channels: int"
    )
