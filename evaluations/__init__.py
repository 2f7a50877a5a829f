"""Honest evaluation: metrics in PyTorch, every number stamped with how it was made."""
