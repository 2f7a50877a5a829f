"""Names of published GPT checkpoints (GigaTok, LlamaGen), to be used with the functions of `tokenizer.released`."""

from __future__ import annotations

from tokenizer.released import Rule

GPT_NAMES: tuple[Rule, ...] = (  # a model with qk_norm has no published layout: its norms match no rule
    (r"class_embedding\.weight", "cls_embedding.embedding_table.weight", "same"),
    (r"token_embedding\.weight", "tok_embeddings.weight", "same"),
    (r"positional_embedding", "positional_embedding", "same"),
    (r"((layers|norm|output)\.(?!.*[qk]_norm).*)", r"\1", "same"),
)

IGNORED = ("freqs_cis", ".kv_cache.")  # tables and caches that published files may hold beside the weights


def ignored(name: str) -> bool:
    """Whether a published tensor is not a weight."""
    return any(part in name for part in IGNORED)
