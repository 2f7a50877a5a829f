"""YAML files as OmegaConf trees, and the `base` that a file is laid over.

base: ../VQ_SS256.yaml      # first key of the file; the path is relative to the file's own folder
base: vq/VQ_SS256           # or the whole name of a shipped recipe
model: {hybrid: {semantic_layer: 2}}
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.config_types import short_value, shortened
from engine.messages import ConfigError
from engine.near_names import did_you_mean
from engine.recipe_names import near_recipes, shipped_recipe

BASE = "base"
MAX_BYTES = 10**6  # of a config; those here have a hundredth of it, and a large file would be read for minutes

Layer = tuple[str, DictConfig]  # the name of a source for messages, and its content


def read_yaml(path: str | Path) -> DictConfig:
    """A YAML file, laid over its base where it names one, as one tree. See `read_layers`."""
    trees = [tree for _, tree in read_layers(path)]
    return trees[0] if len(trees) == 1 else OmegaConf.merge(*trees)


def read_layers(path: str | Path) -> list[Layer]:
    """A YAML file and the files of its chain of bases, the farthest base first; later ones win key by key.

    Raises ConfigError for a file that is missing or not readable, a `base` that is not the first key, and a circle.
    """
    path = Path(path)
    layers: list[Layer] = []
    chain: list[Path] = []
    while path is not None:
        if path.resolve() in [earlier.resolve() for earlier in chain]:
            raise ConfigError(f"the bases form a circle: {' -> '.join(map(str, [*chain, path]))}")
        chain.append(path)
        base, tree = read_own_layer(path, used_by=chain[-2] if len(chain) > 1 else None)
        layers.append((str(path), tree))
        path = base
    return layers[::-1]


def read_own_layer(path: str | Path, used_by: Path | None = None) -> tuple[Path | None, DictConfig]:
    """(path of the base or None, the tree without its key `base`) of one YAML file. `used_by` is named in messages."""
    path = Path(path)
    tree = _read_file(path, used_by)
    if BASE not in tree:
        return None, tree

    base = tree._get_node(BASE)._value()
    if next(iter(tree)) != BASE:
        raise ConfigError(f"{path}: base={short_value(base)} must be the first key of the file")
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"{path}: base={short_value(base)} must be the path of a YAML file, relative to {path.parent}, "
            "or the name of a recipe"
        )
    del tree[BASE]
    return _base_file(path.parent, base), tree


def _base_file(folder: Path, base: str) -> Path:
    """The file that `base` in a YAML file in `folder` stands for. A path counts before the name of a recipe."""
    file = Path(os.path.normpath(folder / base))
    return file if file.is_file() else shipped_recipe(base) or file


def _read_file(path: Path, used_by: Path | None) -> DictConfig:
    """One file as it is. The message of a path that does not exist suggests the nearest name."""
    if not path.is_file():
        names = [other.name for other in path.parent.glob("*.yaml")]
        near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)]
        near = near or near_recipes(path.stem)[:1]
        hint = did_you_mean(near)
        role = f"the base of {used_by}," if used_by else "config file"
        raise ConfigError(f"{role} {path} does not exist{hint}")

    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"{path} is no config: it has {size:,} bytes, and a config has {MAX_BYTES:,} at most")
    try:
        node = OmegaConf.load(path)
    except (YAMLError, OSError, ValueError, OmegaConfBaseException) as error:  # OSError: a bare number, says OmegaConf
        raise ConfigError(f"{path} is not readable YAML: {_reason(error)}") from error
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of keys, not {type(node).__name__}")
    return node


def _reason(error: Exception) -> str:
    """Why a file is not readable: the place and the kind of the fault. What libraries quote of the content is left out,
    for it may be a file of another kind, such as one with keys of an account.
    """
    if isinstance(error, OmegaConfBaseException):
        key = f" of {shortened(str(error.full_key))}" if error.full_key else ""
        return f"the value{key} cannot be read ({type(error).__name__})"
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {shortened(getattr(error, 'problem', None) or '')}"
    return shortened(str(error))
