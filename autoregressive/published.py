"""Names of published GPT checkpoints (GigaTok, LlamaGen, WeTok), for the functions of `tokenizer.released`."""

from __future__ import annotations

from autoregressive.models.gpt import GPTConfig
from tokenizer.published.layout import Rule

GPT_NAMES: tuple[Rule, ...] = (  # a model with qk_norm has no published layout: its norms match no rule
    (r"class_embedding\.weight", "cls_embedding.embedding_table.weight", "same"),
    (r"token_embedding\.weight", "tok_embeddings.weight", "same"),
    (r"positional_embedding", "positional_embedding", "same"),
    (r"((layers|norm|output)\.(?!.*[qk]_norm).*)", r"\1", "same"),
)


WETOK_NAMES: tuple[Rule, ...] = (
    (r"class_embedding\.weight", "class_emb.embedding_table.weight", "same"),
    (r"layers\.((?!.*[qk]_norm).*)", r"spatial_blocks.\1", "same"),
    (r"head\.tables\.(\d+)\.weight", r"\1_emb.weight", "same"),
    (r"head\.layers\.((?!.*[qk]_norm).*)", r"factorized_blocks.\1", "same"),
    (r"head\.norm\.(.*)", r"norm.\1", "same"),
    (r"head\.outputs\.(.*)", r"head.\1", "same"),
)


TWO_TABLES: tuple[Rule, ...] = tuple(  # of a token of two indices
    (rf"head\.tables\.{number}\.weight", f"{name}_emb.weight", "same") for number, name in enumerate(("pre", "post"))
)


def layout_rules(config: GPTConfig) -> tuple[Rule, ...]:
    """The names of the family that a config describes."""
    if len(config.streams) == 2:
        return TWO_TABLES + WETOK_NAMES
    return WETOK_NAMES if config.streams else GPT_NAMES


IGNORED = ("freqs_cis", ".kv_cache.")  # tables and caches that published files may hold beside the weights


def ignored(name: str) -> bool:
    """Whether a published tensor is not a weight."""
    return any(part in name for part in IGNORED)
