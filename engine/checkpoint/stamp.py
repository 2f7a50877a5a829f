"""The stamp of weights that have no manifest beside them: facts in the header of their safetensors file.

A checkpoint of a run has its stamp in manifest.json. Weights that are saved to be shared carry it inside their file, so
that class names and the fingerprint of the tokenizer go where the weights go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from engine.checkpoint.code_maker import CODES_FINGERPRINT, DECODER_OF, TOKENIZER_FINGERPRINT
from engine.checkpoint.manifest import CheckpointError
from engine.data.classes import STAMP as CLASSES
from engine.json_text import to_json

HEADER_KEY = "stamp"  # of the metadata in the header


def header_of(stamp: Mapping[str, Any] | None) -> dict[str, str] | None:
    """The metadata of a safetensors file that carries a stamp; None for no stamp.

    It is one key alone: safetensors writes several in an order that differs from one process to the next, and the same
    weights would get files with different hashes.
    """
    return {HEADER_KEY: to_json(stamp)} if stamp else None


def read_stamp(path: Path) -> dict[str, Any]:
    """The stamp in the header of a safetensors file; empty where it has none.

    Raises CheckpointError where the file cannot be read, or its stamp is not one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    if text is None:
        return {}

    try:
        stamp = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the stamp in the header of {path} is damaged: {error}") from error
    if not isinstance(stamp, dict) or not _is_sound(stamp):
        raise CheckpointError(f"the stamp in the header of {path} is not one of this program")
    return stamp


def _is_sound(stamp: Mapping[str, Any]) -> bool:
    """Whether the facts that others read have the right form: anybody may have written the file."""
    classes = stamp.get(CLASSES, {"names": [], "are_named": True})
    plugins = stamp.get("plugins", {})
    decoder_of = stamp.get(DECODER_OF, [])
    return (
        isinstance(classes, dict)
        and isinstance(classes.get("names"), list)
        and all(isinstance(name, str) for name in classes["names"])
        and isinstance(classes.get("are_named"), bool)
        and isinstance(plugins, dict)
        and all(isinstance(value, str) for value in plugins.values())
        and all(isinstance(stamp.get(key, ""), str) for key in (TOKENIZER_FINGERPRINT, CODES_FINGERPRINT))
        and isinstance(decoder_of, list)
        and all(isinstance(value, str) for value in decoder_of)
    )
