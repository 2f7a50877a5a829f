"""Discrete visual tokenizers.

Public face: `from tokenizer import Tokenizer, build_tokenizer, load_tokenizer`.

Networks     models/ (tokenizers), quantizers/, discriminators/, frozen/ (pretrained networks)
Codes        token_tools (maps, replaced tokens, pictures between pictures)
Training     losses/ (terms of the loss), training/ (config, checks, phases, task)
Files        loading (trained tokenizers), published/ (layouts of published files), autoencoders/ (of other programs)
Entries      train, reconstruct (its files: pair_names), convert; cli holds the flags that entries share
"""

__all__ = ["Tokenizer", "build_tokenizer", "load_tokenizer"]


def __getattr__(name: str):
    """Imports torch, and what a name needs beside it, only when that name is asked for."""
    if name == "Tokenizer":
        from tokenizer.models.base import Tokenizer

        return Tokenizer
    if name == "build_tokenizer":
        from tokenizer.models.registry import build_tokenizer

        return build_tokenizer
    if name == "load_tokenizer":
        from tokenizer.loading import load_tokenizer

        return load_tokenizer
    raise AttributeError(f"module 'tokenizer' has no attribute {name!r}")
