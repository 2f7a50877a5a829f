"""Numbers of things in messages: `1 image`, `12,000 images`."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, which gets an `s` for all numbers but 1, or becomes `plural`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
