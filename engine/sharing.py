"""What may leave this machine with the weights of a network: its config and stamp without places, and one writer.

A place is a path, a project name of a tracker, or anything else that tells where and by whom a network was trained.
Configs lose the keys in `PRIVATE_KEYS` and every value that looks like a path; who reads them gets the defaults. The
section of the network loses real paths only: without one of its words, the weights might not fit. `left_out` says which
keys are gone.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path, PurePath
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from engine.arguments import path_text
from engine.checkpoint.weights import export_folder
from engine.config import flatten
from engine.config_trees import tree_of
from engine.data.classes import STAMP as CLASSES
from engine.hub import is_address
from engine.messages import UserError, logger
from engine.plugins import HASH_MARK
from engine.shipped_models import is_shipped

# Keys whose texts name places, wherever they stand in a config but in the section of the network, where the same keys
# hold words: `init: kmeans`.
PRIVATE_KEYS = frozenset(
    {"root", "val_root", "held_out", "codes", "tokenizer", "init", "run_dir", "pretrained_dir", "wandb_project"}
)
OF_THE_FILE = ("hub", "stored_dtype")  # keys of a stamp that speak of one file
PRIVATE_SECTIONS = frozenset({"wandb"})  # of an account: its project, its group, the names of its runs
NETWORK = "model"  # the section of the network
PLUGINS = "plugins"
WINDOWS_ROOT = re.compile(r"[A-Za-z]:[\\/]")
# How a text begins that is a path or an address, and no name with a slash such as `timm/vit_small`.
PATH_START = re.compile(r"/[A-Za-z_.]|~[\w.-]*[\\/]|\\\\|[A-Za-z]:[\\/]|\.{1,2}[\\/]|[a-z][a-z0-9+.-]*://")
FILE_SUFFIXES = frozenset(
    {".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz", ".npy", ".tar", ".json", ".yaml", ".yml", ".txt", ".py"}
)
# A path from the root of a file system, in running text: not a part of an address, a fraction or a closing tag.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w:/.<~)\]-])(?:/[\w.@+-]+){2,}"  # /home/...
    r"|(?<!\w)[A-Za-z]:\\[\w.@+-]+"  # C:\...
    r"|(?<![\w/])~[\w.-]*/[\w.@+-]+"  # ~/...
)
SHORTEST_HOST = 4  # letters of a host's name that is searched for; shorter ones are words


# ------------------------------------------------------------------------------------------------ configs and stamps
def public_config(config: Any) -> DictConfig:
    """A config (dataclass tree or OmegaConf tree), resolved, without places; keys that are gone have their defaults."""
    tree = tree_of(config) if is_dataclass(config) else config
    return OmegaConf.create(_public_section(OmegaConf.to_container(tree, resolve=True)))


def left_out(config: Any, public: DictConfig) -> list[str]:
    """The dotted keys whose values `public_config` has left out of `config`, without those that are empty."""
    tree = tree_of(config) if is_dataclass(config) else config
    values = flatten(OmegaConf.create(OmegaConf.to_container(tree, resolve=True)))
    stay = flatten(public)
    set_values = {key: value for key, value in values.items() if value not in ("", None, []) and key != PLUGINS}
    return [key for key, value in set_values.items() if stay.get(key) != value]


def _public_section(section: Mapping[str, Any], *, of_network: bool = False) -> dict[str, Any]:
    """A section of a config without places. Those `of_network` keep words that only look like one."""
    is_private = _is_path if of_network else _is_place
    public: dict[str, Any] = {}
    for key, value in section.items():
        if key in PRIVATE_SECTIONS and not of_network:
            continue

        # Plug-ins, parts of the section, and single values.
        if key == PLUGINS and isinstance(value, list):
            public[key] = [_plugin_name(str(name)) for name in value]
        elif isinstance(value, Mapping):
            public[key] = _public_section(value, of_network=of_network or key == NETWORK)
        elif isinstance(value, list | tuple):
            public[key] = [
                _public_section(v, of_network=of_network) if isinstance(v, Mapping) else v
                for v in value
                if not is_private(v)
            ]
        elif not (is_private(value) or (isinstance(value, str) and key in PRIVATE_KEYS and not of_network)):
            public[key] = value
    return public


def _is_place(value: Any) -> bool:
    """Whether a value of a config is a text that looks like a path or an address."""
    return isinstance(value, str) and ("/" in value or "\\" in value or value.startswith("~"))


def _is_path(value: Any) -> bool:
    """Whether a value is a path or an address: by its beginning, the suffix of a file, or because something lies
    there. `timm/vit_small` and `1/2` are none.
    """
    if not isinstance(value, str):
        return False
    if PATH_START.match(value) or ABSOLUTE_PATH.search(value):
        return True
    has_folders = any(mark in value.strip("/\\") for mark in "/\\")
    return has_folders and (PurePath(value).suffix in FILE_SUFFIXES or os.path.exists(value))  # noqa: PTH110 - any text


def _plugin_name(text: str) -> str:
    """The name of a plug-in, of a file without its folder; a hash behind it stays."""
    name, mark, sha256 = text.partition(HASH_MARK)
    return f"{_file_name(name)}{mark}{sha256}"


def _file_name(path: str) -> str:
    """The last part of a path of either kind; other texts as they are."""
    return PurePath(path.replace("\\", "/")).name if "/" in path or "\\" in path else path


def public_stamp(stamp: Mapping[str, Any]) -> dict[str, Any]:
    """A stamp without places: plug-ins by the names of their files, and no text that is an absolute path.

    Names of classes stay: they say what the network draws. What is true of the file that was read alone does not travel
    on: where it was fetched from, and the precision of its numbers.
    """
    public: dict[str, Any] = {}
    for key, value in stamp.items():
        if key in OF_THE_FILE:
            continue
        if key == CLASSES:
            public[key] = value
        elif key == PLUGINS:
            public[key] = {_file_name(name): sha256 for name, sha256 in value.items()}
        elif isinstance(value, Mapping):
            public[key] = public_stamp(value)
        elif not (isinstance(value, str) and _is_absolute(value)):
            public[key] = value
    return public


def _is_absolute(text: str) -> bool:
    return text.startswith(("/", "~", "\\\\")) or WINDOWS_ROOT.match(text) is not None


# ------------------------------------------------------------------------------------------------ a last look
def private_words(text: str) -> Iterator[str]:
    """What a text tells of this machine: absolute paths, the folder of its user, and its name."""
    for match in ABSOLUTE_PATH.finditer(text):
        yield match[0]
    home = str(Path.home())
    if home not in ("", "/") and home in text:
        yield home
    host = os.environ.get("HOSTNAME") or socket.gethostname()
    if len(host) >= SHORTEST_HOST and re.search(rf"\b{re.escape(host)}\b", text):
        yield host


# ------------------------------------------------------------------------------------------------ writing
def say_left_out(name: str, config: Any, public: DictConfig) -> None:
    """Tells which keys the published config `name` has lost."""
    keys = left_out(config, public)
    if keys:
        logger.info("%s: left out, because they name places: %s", name, ", ".join(keys))


def save_network(network: nn.Module, folder: str | Path) -> None:
    """Writes a loaded network to a new folder: model.safetensors, with class names and other facts in its header, and
    config.yaml, both without places. The network says by `state_to_share` which numbers are its own.

    Raises UserError where the folder exists or the name stands for none, and where the network was not loaded and so
    has no config.
    """
    path = path_text(folder, "folder", "the path of a new folder")
    if is_address(path) or is_shipped(path):
        raise UserError(f"folder={path!r} is no folder; to share a network on the hub: python -m evaluations.publish")
    provenance = network.provenance
    if provenance is None:
        raise UserError("only a network that was loaded can be saved: a fresh one has no config (train or load it)")
    stamp = public_stamp(provenance.stamp)
    if provenance.weights == "ema":
        stamp["weights"] = "ema"  # the file is called model.safetensors, because it is all that there is
    public = public_config(provenance.config)
    export_folder(Path(path), public, {"model": network.state_to_share()}, stamp)
    say_left_out("config.yaml", provenance.config, public)
