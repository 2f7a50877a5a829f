"""Tokenizer networks."""
