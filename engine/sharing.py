"""What may leave this machine with the weights of a network: its config and stamp without places, and one writer.

A place is a path, a project name of a tracker, or anything else that tells where and by whom a network was trained.
Configs lose the keys in `PRIVATE_KEYS` and every value that looks like a path; who reads them gets the defaults.
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

from engine.checkpoint.weights import export_folder
from engine.data.classes import STAMP as CLASSES
from engine.messages import UserError
from engine.plugins import HASH_MARK

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
    tree = OmegaConf.structured(config) if is_dataclass(config) else config
    return OmegaConf.create(_public_section(OmegaConf.to_container(tree, resolve=True)))


def _public_section(section: Mapping[str, Any], private_keys: frozenset[str] = PRIVATE_KEYS) -> dict[str, Any]:
    """A section of a config without places."""
    public: dict[str, Any] = {}
    for key, value in section.items():
        if key in PRIVATE_SECTIONS:
            continue

        # Plug-ins, parts of the section, and single values.
        if key == PLUGINS and isinstance(value, list):
            public[key] = [_plugin_name(str(name)) for name in value]
        elif isinstance(value, Mapping):
            public[key] = _public_section(value, frozenset() if key == NETWORK else private_keys)
        elif isinstance(value, list | tuple):
            public[key] = [
                _public_section(v, private_keys) if isinstance(v, Mapping) else v for v in value if not _is_place(v)
            ]
        elif not (isinstance(value, str) and (key in private_keys or _is_place(value))):
            public[key] = value
    return public


def _is_place(value: Any) -> bool:
    """Whether a value of a config is a text that looks like a path or an address."""
    return isinstance(value, str) and ("/" in value or "\\" in value or value.startswith("~"))


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
def save_network(network: nn.Module, folder: str | Path) -> None:
    """Writes a loaded network to a new folder: model.safetensors, with class names and other facts in its header, and
    config.yaml, both without places. The network says by `state_to_share` which numbers are its own.

    Raises UserError where the folder exists, or the network was not loaded and so has no config.
    """
    provenance = network.provenance
    if provenance is None:
        raise UserError("only a network that was loaded can be saved: a fresh one has no config (train or load it)")
    stamp = public_stamp(provenance.stamp)
    if provenance.weights == "ema":
        stamp["weights"] = "ema"  # the file is called model.safetensors, because it is all that there is
    export_folder(Path(folder), public_config(provenance.config), {"model": network.state_to_share()}, stamp)
