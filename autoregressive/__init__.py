"""Autoregressive image generation over codes. Public face: `from autoregressive import load_gpt, generate`."""


def __getattr__(name: str):
    """Imports torch only when something is asked for."""
    if name == "load_gpt":
        from autoregressive.loading import load_gpt

        return load_gpt
    if name == "generate":
        from autoregressive.generate import generate

        return generate
    raise AttributeError(f"module 'autoregressive' has no attribute {name!r}")
