"""Whole jobs made of the commands of other entries: the quick start, and AR probing."""
