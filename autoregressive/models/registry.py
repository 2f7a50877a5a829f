"""Which generator: a name in a config -> a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from autoregressive.models.base import Generator
from autoregressive.models.gpt import GPT, GPTConfig
from engine.registry import selected_section

GENERATORS: dict[str, type[Generator]] = {"gpt": GPT}


@dataclass(kw_only=True, slots=True)
class GeneratorConfig:
    """`name` picks the generator, the section of that name configures it."""

    REGISTRY: ClassVar[Mapping[str, Any]] = GENERATORS

    name: str = "gpt"
    gpt: GPTConfig = field(default_factory=GPTConfig)


def build_generator(config: GeneratorConfig) -> Generator:
    """The generator that `config` describes, freshly initialized.

    Raises ConfigError where sizes do not fit together, or a section is set that is not in use.
    """
    section = selected_section(config, GENERATORS, "model")
    return GENERATORS[config.name](section)
