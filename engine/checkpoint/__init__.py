"""Crash-safe checkpoints: manifest, weights, and the store of a run."""
