"""The shipped recipes by name: the path below configs/ without `.yaml`, or the end of it where that is unique.

vq/VQ_SS256    VQ_SS256    quickstart/gpt    configs/vq/VQ_SS256.yaml (from any folder)
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from engine.installation import CONFIGS
from engine.messages import ConfigError, logger
from engine.near_names import did_you_mean, near_names

SUFFIX = ".yaml"
# File names that published instructions use -> the recipe that they mean. Their folder does not matter.
PUBLISHED_NAMES = {
    "VQ_BL256_dinodisc": "vq/VQ_BL256_dino_disc",
    "VQ_BL56": "vq/VQ_BL256",
}


@lru_cache
def recipe_files() -> dict[str, Path]:
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
    shipped = shipped_recipe(path)
    if shipped is not None:
        return shipped
    published = PUBLISHED_NAMES.get(path.name.removesuffix(SUFFIX))
    if published is not None:
        logger.info("%s is read as the recipe %s, which is meant by this name", text, published)
        return recipe_files()[published]
    if path.suffix in (SUFFIX, ".yml"):
        return path

    # The end of a name. It is not looked for where a file is meant: another one of that name would be a guess.
    name = path.as_posix()
    matches = [other for other in recipe_files() if other.endswith(f"/{name}")]
    if len(matches) == 1:
        return recipe_files()[matches[0]]
    if matches:
        raise ConfigError(f"recipe {name!r} could be any of: {', '.join(matches)}")
    hint = did_you_mean(near_recipes(name))
    raise ConfigError(f"{name!r} is neither a YAML file nor the name of a recipe{hint} (`vt recipes` lists all)")


def shipped_recipe(path: str | Path) -> Path | None:
    """The file of a recipe by its whole name, also written as `configs/NAME.yaml`; None where no recipe has it."""
    name = Path(path).as_posix().removeprefix(f"{CONFIGS.name}/").removesuffix(SUFFIX)
    return recipe_files().get(name)


def near_recipes(name: str) -> list[str]:
    """Recipes whose name, or the last part of it, looks like `name`."""
    candidates: dict[str, str] = {}
    for other in recipe_files():
        candidates.setdefault(other.rpartition("/")[2], other)
        candidates[other] = other
    return list(dict.fromkeys(candidates[key] for key in near_names(name, candidates)))
