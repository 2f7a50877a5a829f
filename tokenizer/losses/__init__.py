"""Losses of tokenizer training. They import the engine only, and never log or step."""
