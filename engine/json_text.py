"""The one writer of JSON: everything that is written to a file or hashed goes through `to_json`.

Python writes NaN and infinity as words that are no JSON (RFC 8259, section 6), which other programs refuse. Here they
become `null`. Metrics are read back by `engine.run_log.read_metrics`, where `null` is NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(content: Any, *, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    """`content` as JSON text that every reader accepts; numbers that are not finite are `null`.

    `ensure_ascii=False` leaves letters of all languages as they are, for people.
    """
    options = {"indent": indent, "sort_keys": sort_keys, "ensure_ascii": ensure_ascii, "allow_nan": False}
    try:
        return json.dumps(content, **options)
    except ValueError:
        return json.dumps(_without_nan(content), **options)


def as_read_back(content: Any) -> Any:
    """`content` as it looks when its JSON is read again: tuples are lists, keys are strings."""
    return json.loads(to_json(content))


def _without_nan(content: Any) -> Any:
    """A copy with None in the place of numbers that are not finite."""
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return content
