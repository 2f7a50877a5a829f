"""Discrete visual tokenizers. Public face: `from tokenizer import load_tokenizer`."""


def __getattr__(name: str):
    """Imports torch only when `load_tokenizer` is asked for."""
    if name == "load_tokenizer":
        from tokenizer.loading import load_tokenizer

        return load_tokenizer
    raise AttributeError(f"module 'tokenizer' has no attribute {name!r}")
