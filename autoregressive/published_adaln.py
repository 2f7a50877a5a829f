"""Published generators of IBQ (arXiv:2412.02692): Lightning files that hold the tokenizer, too."""

from __future__ import annotations

from autoregressive.models.adaln_gpt import AdaLNGPTConfig
from autoregressive.published_layout import RuledLayout
from tokenizer.published.layout import Rule

# A model with a factorized head, two tables of positions or norms of queries has no published layout.
IBQ_NAMES: tuple[Rule, ...] = (
    Rule(r"class_embedding\.weight", "class_emb.embedding_table.weight", "same"),
    Rule(r"token_embedding\.weight", "tok_emb.weight", "same"),
    Rule(r"layers\.(\d+)\.modulation\.(.*)", r"blocks.\1.ada_lin.1.\2", "same"),
    Rule(r"layers\.((?!.*[qk]_norm).*)", r"blocks.\1", "same"),
    Rule(r"final_norm\.norm\.(.*)", r"head_nm.rmsnorm.\1", "same"),
    Rule(r"final_norm\.modulation\.(.*)", r"head_nm.ada_lin.1.\1", "same"),
    Rule(r"output\.(.*)", r"head.\1", "same"),
)


class AdaLNGPTLayout(RuledLayout):
    """Files of IBQ's generators."""

    def __init__(self, config: AdaLNGPTConfig) -> None:
        super().__init__(IBQ_NAMES, file_key="state_dict", holds_tokenizer=True)
