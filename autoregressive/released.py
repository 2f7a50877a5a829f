"""Names of published GPT checkpoints (GigaTok): rules for `import_state` and `export_state` of `tokenizer.released`."""

from __future__ import annotations

from tokenizer.released import Rule

GPT_NAMES: tuple[Rule, ...] = (
    (r"class_embedding\.weight", "cls_embedding.embedding_table.weight", "same"),
    (r"token_embedding\.weight", "tok_embeddings.weight", "same"),
    (r"positional_embedding", "positional_embedding", "same"),
    (r"(layers|norm|output)\.(.*)", r"\1.\2", "same"),
)
