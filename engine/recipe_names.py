"""The shipped recipes by name: the path below configs/ without `.yaml`, or the end of it where that is unique.

vq/VQ_SS256    VQ_SS256    quickstart/gpt    configs/vq/VQ_SS256.yaml (from any folder)
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path

from engine.installation import CONFIGS, ROOT
from engine.messages import ConfigError

SUFFIX = ".yaml"
MAX_SUGGESTIONS = 3


@lru_cache
def shipped_recipes() -> dict[str, Path]:
    """{name: file} of all YAML files that come with the program, in the order of their names."""
    files = sorted(CONFIGS.rglob(f"*{SUFFIX}"))
    return {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in files}


def recipe_file(text: str | Path) -> Path:
    """The YAML file that a user means by a path or by the name of a shipped recipe. A file that is here counts first.

    A path of a YAML file that does not exist is returned as it is, for the reader of files to say what is near.

    Raises ConfigError for a name that no recipe has, or several have.
    """
    path = Path(text)
    if path.is_file():
        return path
    if path.parts[:1] == (CONFIGS.name,) and (ROOT / path).is_file():
        return ROOT / path

    # A name.
    name = path.as_posix().removesuffix(SUFFIX)
    matches = matching_recipes(name)
    if len(matches) == 1:
        return shipped_recipes()[matches[0]]
    if matches:
        raise ConfigError(f"recipe {name!r} could be any of: {', '.join(matches)}")
    if path.suffix in (SUFFIX, ".yml"):
        return path
    near = near_recipes(name)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"{name!r} is neither a YAML file nor the name of a recipe{hint} (`vt recipes` lists all)")


def matching_recipes(name: str) -> list[str]:
    """The recipes whose name is `name`, else those whose name ends in it."""
    names = shipped_recipes()
    return [name] if name in names else [other for other in names if other.endswith(f"/{name}")]


def near_recipes(name: str) -> list[str]:
    """Recipes whose name, or the last part of it, looks like `name`, for messages."""
    last_parts: dict[str, str] = {}
    for other in shipped_recipes():
        last_parts.setdefault(other.rpartition("/")[2].lower(), other)
    candidates = {**last_parts, **{other.lower(): other for other in shipped_recipes()}}
    near = difflib.get_close_matches(name.lower(), candidates, n=MAX_SUGGESTIONS, cutoff=0.6)
    return list(dict.fromkeys(candidates[key] for key in near))
