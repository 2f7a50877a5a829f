"""Published generators of RAR (arXiv:2411.00776): files that are a state dict of raw weights."""

from __future__ import annotations

from autoregressive.models.rar import RARConfig
from autoregressive.published_layout import RuledLayout
from tokenizer.published.layout import Rule

RAR_NAMES: tuple[Rule, ...] = (
    Rule(r"cls", "cls_token", "same"),
    Rule(r"positions", "pos_embed", "same"),
    Rule(r"targets", "target_aware_pos_embed", "same"),
    Rule(r"steps", "timesteps_embeddings", "same"),
    Rule(r"embedding\.weight", "embeddings.weight", "same"),
    Rule(r"layers\.(\d+)\.attention\.(.*)", r"blocks.\1.attn.\2", "same"),
    Rule(r"layers\.(\d+)\.(fc[12]\..*)", r"blocks.\1.mlp.\2", "same"),
    Rule(r"layers\.(\d+)\.modulation\.(.*)", r"blocks.\1.adaLN_modulation.1.\2", "same"),
    Rule(r"layers\.(\d+)\.(norm[12]\..*)", r"blocks.\1.\2", "same"),
    Rule(r"final_modulation\.(.*)", r"adaln_before_head.adaLN_modulation.1.\1", "same"),
    Rule(r"output\.(.*)", r"lm_head.\1", "same"),
)


class RARLayout(RuledLayout):
    """Files of RAR, without a key around the state dict."""

    def __init__(self, config: RARConfig) -> None:
        super().__init__(RAR_NAMES, file_key="", holds_tokenizer=False)
