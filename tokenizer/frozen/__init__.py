"""Frozen pretrained networks, by name."""
