"""Autoregressive image generation over codes. Public face: `from autoregressive import load_gpt, generate`."""

from autoregressive.generate import generate  # at once: later, the submodule of this name would stand in its place

__all__ = ["generate", "load_gpt"]


def __getattr__(name: str):
    """Imports what loading needs only when it is asked for."""
    if name == "load_gpt":
        from autoregressive.loading import load_gpt

        return load_gpt
    raise AttributeError(f"module 'autoregressive' has no attribute {name!r}")
