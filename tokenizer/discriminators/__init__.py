"""Discriminators by name. They import the engine and frozen networks only."""
