"""Layouts of published files, by the name of the model that they serve."""

from __future__ import annotations

from engine.messages import ConfigError
from tokenizer.models.registry import ModelConfig
from tokenizer.published.gigatok import GigaTokLayout
from tokenizer.published.layout import PublishedLayout, Rule, State
from tokenizer.published.llamagen import LlamaGenLayout
from tokenizer.published.maskgit_vq import MaskGITVQLayout
from tokenizer.published.var_vae import VARVAELayout
from tokenizer.published.wetok import WeTokLayout

LAYOUTS: dict[str, PublishedLayout] = {
    "hybrid": GigaTokLayout(),
    "llamagen": LlamaGenLayout(),
    "wetok": WeTokLayout(),
    "maskgit_vq": MaskGITVQLayout(),
    "var_vae": VARVAELayout(),
}


def layout_of(config: ModelConfig) -> PublishedLayout:
    """The layout of the model that a config names. Raises ConfigError where it has none."""
    if config.name not in LAYOUTS:
        accepted = ", ".join(sorted(LAYOUTS))
        raise ConfigError(f"model.name={config.name!r} has no published layout (models that have one: {accepted})")
    return LAYOUTS[config.name].variant(config)


def layout_rules(config: ModelConfig) -> tuple[Rule, ...]:
    """The names of the network that a config describes."""
    return layout_of(config).rules(config)


def config_of_state(state: State) -> ModelConfig | None:
    """The architecture that a published state dict shows by itself; None where it needs a YAML."""
    for layout in LAYOUTS.values():
        detected_config = layout.config_of(state)
        if detected_config is not None:
            return detected_config
    return None
