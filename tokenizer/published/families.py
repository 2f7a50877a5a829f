"""Which published family a model config or a state dict belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from engine.messages import ConfigError
from tokenizer.models.registry import ModelConfig
from tokenizer.published.gigatok import HYBRID_1D, HYBRID_2D
from tokenizer.published.layout import Rule
from tokenizer.published.llamagen import LLAMAGEN
from tokenizer.published.wetok import GPT_PART, _wetok


def layout_rules(config: ModelConfig) -> tuple[Rule, ...]:
    """The rules of the family that a model config describes."""
    if config.name == "wetok":
        return _wetok(len(config.wetok.cnn.channel_multipliers))
    if config.quantizer.name != "vq":
        raise ConfigError(f"model.quantizer.name={config.quantizer.name}: no published layout of {config.name} has it")
    if config.name == "llamagen":
        return LLAMAGEN
    if config.hybrid.qk_norm:
        raise ConfigError("model.hybrid.qk_norm=true: no published layout has it")
    return HYBRID_1D if config.hybrid.layout == "1d" else HYBRID_2D


def is_gpt(published: Mapping[str, Tensor]) -> bool:
    """Whether a published state dict is that of a GPT."""
    names = {name.removeprefix(GPT_PART) for name in published}
    return bool(names & {"tok_embeddings.weight", "class_emb.embedding_table.weight"})
