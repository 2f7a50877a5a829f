"""What somebody may have meant by the name of a network that is not there: a model, a run, or an address of the hub."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

from engine.hub import ADDRESS, PREFIX
from engine.near_names import did_you_mean, near_names
from engine.shipped_models import PREFIX as SHIPPED_PREFIX
from engine.shipped_models import shipped_names

RUNS = Path("runs")  # where the recipes put runs
MAX_LISTED = 2000  # entries of a folder that are looked at
# What a folder that stands for a network holds: weights, checkpoints of a run, or several networks.
CONTENTS = ("model.safetensors", "ema.safetensors", "checkpoints", "phase_1", "tokenizer", "gpt")
# What people type before the name of a repository: another spelling of the prefix, or the scheme and host of its page.
OTHER_PREFIX = re.compile(r"(?:hf|hub|hf[-_]hub|huggingface(?:\.\w+)?)[:/]+|\w+://?[^/]+/", re.IGNORECASE)


def near_sources(text: str) -> str:
    """The end of a message about a network `text` that is not there: what may be meant; empty where nothing is near."""
    here = [*_near_models(text), *_near_folders(Path(text))]
    return did_you_mean(dict.fromkeys(here or _near_addresses(text)))


def _near_models(text: str) -> list[str]:
    """Models that come with the program, named without their prefix, or nearly so."""
    start = text.lower().removeprefix(SHIPPED_PREFIX.rstrip(":")).lstrip(":/-_ ")
    names = {name.removeprefix(SHIPPED_PREFIX): name for name in shipped_names()}
    return [names[name] for name in near_names(start.split("/")[0], names)]


def _near_folders(path: Path) -> list[str]:
    """Folders with nearly this name beside it, and below `runs/` where only a name was typed."""
    places = [path.parent] if len(path.parts) > 1 else [Path(), RUNS]
    near = []
    for place in places:
        try:
            folders = {entry.name: entry for entry in islice(place.iterdir(), MAX_LISTED) if entry.is_dir()}
        except OSError:  # the folder is not there, or is nobody's to read
            continue
        near += [str(folders[name]) for name in near_names(path.name, folders) if _holds_network(folders[name])]
    return near


def _holds_network(folder: Path) -> bool:
    return any((folder / name).exists() for name in CONTENTS)


def _near_addresses(text: str) -> list[str]:
    """The address of the hub, where the text looks like that of a repository and not like a folder here."""
    match = OTHER_PREFIX.match(text)
    if match is not None:
        owner_and_name = "/".join(text[match.end() :].split("/")[:2])
        return [f"{PREFIX}{owner_and_name}"] if ADDRESS.fullmatch(owner_and_name) else []
    owner = Path(text).parent
    is_folder = text.startswith(".") or owner == RUNS or owner.exists()
    return [f"{PREFIX}{text}"] if ADDRESS.fullmatch(text) and not is_folder else []
