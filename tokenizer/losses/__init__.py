"""Losses of tokenizer training. They import `engine`, `tokenizer.discriminators` and `tokenizer.frozen`.

No loss logs or updates anything.
"""
