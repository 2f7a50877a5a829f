"""Generators: the GPT and its parts."""
