"""Published tokenizers of GigaTok (arXiv:2504.08736): hybrids with 1D or 2D tokens."""

from __future__ import annotations

import copy

from engine.messages import ConfigError
from tokenizer.models.registry import ModelConfig
from tokenizer.published.layout import CNN, CODE_PATH, PublishedLayout, Rule, State, require_quantizer

QUANTIZER = "vq"  # the only one of the released models


def _hybrid(encoder: str, decoder: str) -> tuple[Rule, ...]:
    """GigaTok's names, with those of the two transformers of a layout."""
    return (
        Rule(r"query_encoder\.positional_embedding", f"{encoder}.positional_embedding", "table"),
        Rule(r"query_encoder\.latent_positional_embedding", f"{encoder}.latent_token_positional_embedding", "table"),
        Rule(r"query_encoder\.embed\.(.*)", rf"{encoder}.encoder_embed.\1", "same"),
        Rule(r"query_encoder\.out_proj\.weight", f"{encoder}.conv_out.weight", "conv1x1"),
        Rule(r"query_encoder\.out_proj\.bias", f"{encoder}.conv_out.bias", "same"),
        Rule(r"query_encoder\.(.*)", rf"{encoder}.\1", "same"),
        Rule(r"query_decoder\.positional_embedding", f"{decoder}.positional_embedding", "table"),
        Rule(r"query_decoder\.latent_positional_embedding", f"{decoder}.latent_token_positional_embedding", "table"),
        Rule(r"query_decoder\.embed\.(.*)", rf"{decoder}.decoder_embed.\1", "same"),
        Rule(r"query_decoder\.semantic_head\.(.*)", rf"{decoder}.distill_mlp.\1", "same"),
        Rule(r"query_decoder\.(.*)", rf"{decoder}.\1", "same"),
        *CODE_PATH,
        CNN,
    )


HYBRID_1D = _hybrid("s2to1encoder", "s1to2decoder")
HYBRID_2D = _hybrid("s2dencoder", "s2ddecoder")
SEMANTIC_HEADS = ("s1to2decoder.distill_mlp.4.weight", "s2ddecoder.distill_mlp.4.weight")  # rows: teacher's channels


class GigaTokLayout(PublishedLayout):
    """See the module docstring."""

    def rules(self, config: ModelConfig) -> tuple[Rule, ...]:
        require_quantizer(config, QUANTIZER)
        if config.hybrid.qk_norm:
            raise ConfigError("model.hybrid.qk_norm=true: no published layout has it")
        return HYBRID_1D if config.hybrid.layout == "1d" else HYBRID_2D

    def complete_config(self, config: ModelConfig, state: State) -> ModelConfig:
        """The file knows the width of its semantic head, which is for training only."""
        head = next((state[name] for name in SEMANTIC_HEADS if name in state), None)
        if head is None or head.ndim != 2:
            return config  # the strict load names it
        config = copy.deepcopy(config)
        config.hybrid.semantic_dim = head.shape[0]
        return config
