"""Names of LlamaGen's published tokenizers."""

from __future__ import annotations

from tokenizer.published.layout import CNN, CODE_PATH, Rule

LLAMAGEN: tuple[Rule, ...] = (*CODE_PATH, CNN)
