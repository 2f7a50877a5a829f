"""Which generator: a name in a config -> a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from autoregressive.models.adaln_gpt import AdaLNGPT, AdaLNGPTConfig
from autoregressive.models.base import DataSizes, Generator
from autoregressive.models.gpt import GPT, GPTConfig
from autoregressive.models.maskgit import MaskGIT, MaskGITConfig
from autoregressive.models.next_scale import NextScale, NextScaleConfig
from autoregressive.models.rar import RAR, RARConfig
from engine.registry import selected_section

GENERATORS: dict[str, type[Generator]] = {
    "gpt": GPT, "adaln_gpt": AdaLNGPT, "rar": RAR, "next_scale": NextScale, "maskgit": MaskGIT
}  # fmt: skip


@dataclass(kw_only=True, slots=True)
class GeneratorConfig:
    """`name` picks the generator, the section of that name configures it."""

    REGISTRY: ClassVar[Mapping[str, Any]] = GENERATORS

    name: str = "gpt"
    gpt: GPTConfig = field(default_factory=GPTConfig)
    adaln_gpt: AdaLNGPTConfig = field(default_factory=AdaLNGPTConfig)
    rar: RARConfig = field(default_factory=RARConfig)
    next_scale: NextScaleConfig = field(default_factory=NextScaleConfig)
    maskgit: MaskGITConfig = field(default_factory=MaskGITConfig)


def build_generator(config: GeneratorConfig) -> Generator:
    """The generator that `config` describes, freshly initialized.

    Raises ConfigError where sizes do not fit together, or a section is set that is not in use.
    """
    section = selected_section(config, GENERATORS, "model")
    return GENERATORS[config.name](section)


def completed(config: GeneratorConfig, sizes: DataSizes) -> GeneratorConfig:
    """`config` with the sizes that it leaves open as the training data have them. Raises as `build_generator` does."""
    section = selected_section(config, GENERATORS, "model")
    return replace(config, **{config.name: GENERATORS[config.name].completed(section, sizes)})
