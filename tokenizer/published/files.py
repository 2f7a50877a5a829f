"""Reads and writes checkpoint files of the published code bases, safely: tensors and plain values only, never code.

A published `.pt` is a dict with `model` (and `ema`), or a bare state dict; `args` is an `argparse.Namespace`, which is
allowed beside tensors, numbers and text. Files are memory-mapped, so a 12 GB file costs no 12 GB of memory.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.manifest import CheckpointError
from engine.checkpoint.weights import export_folder, read_weights
from engine.messages import UserError, logger

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


WRAPPERS = ("module.", "_orig_mod.")  # of data parallelism and compilation


def is_published(path: str | Path) -> bool:
    """Whether `path` names a single file in a published format, as opposed to a folder of ours."""
    return Path(path).suffix in SUFFIXES and not Path(path).is_dir()


def read_published(path: str | Path, order: tuple[str, ...], prefer: str = "auto") -> tuple[dict[str, Tensor], str]:
    """(state dict, which one) of a published file.

    `order` are the keys to look for, in this order, such as ("ema", "model"); `prefer` names one instead of `auto`. A
    bare state dict is returned as `model`. A file that is missing, truncated, holds pickled code, or none of the keys
    is an error that says which.
    """
    content = _read(Path(path))
    if content and all(isinstance(value, Tensor) for value in content.values()):
        if prefer == "ema":
            raise CheckpointError(f"{path} is a bare state dict; it has no ema weights")
        state, picked = content, "model"
    else:
        keys = order if prefer == "auto" else (prefer,)
        picked = next((k for k in keys if isinstance(content.get(k), Mapping)), None)
        if picked is None:
            found = ", ".join(map(str, content)) or "nothing"
            raise CheckpointError(f"{path} has none of the weights {', '.join(keys)}; it holds: {found}")
        state = content[picked]
    logger.info("%s: took the weights %r", path, picked)
    return {_plain(name): value for name, value in state.items() if isinstance(value, Tensor)}, picked


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        while name.startswith(wrapper):
            name = name.removeprefix(wrapper)
    return name


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        foreign = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), None)
        if foreign is not None:
            raise CheckpointError(f"{path} holds pickled code, which is never run: {foreign}") from error
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    return content


def write_published(path: str | Path, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Writes `{name: state dict}` (`model`, and `ema` where there is one) as the published code does.

    Nothing is overwritten.
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists already; give another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save({name: {k: v.contiguous() for k, v in state.items()} for name, state in states.items()}, temporary)
    temporary.rename(path)


def add_conversion_flags(parser: argparse.ArgumentParser, checkpoint: str, *config: str) -> None:
    """The flags of a converter; `checkpoint` and `config` are those that name the source."""
    parser.add_argument(checkpoint, required=True, type=Path, help="a published file, or a folder of ours")
    parser.add_argument(*config, type=Path, help="YAML of the architecture, for a published file")
    parser.add_argument("--output", required=True, type=Path, help="a folder for ours, a .pt or .ckpt file for theirs")
    parser.add_argument("--weights", default="auto", choices=["auto", "ema", "model"], help="auto: ema if there is one")


def convert(
    source: Path,
    output: Path,
    load: Callable[[], nn.Module],
    published: Callable[[nn.Module], Mapping[str, Mapping[str, Tensor]]],
    ours: Callable[[nn.Module], Mapping[str, Mapping[str, Tensor]]] = lambda network: {"model": network.state_dict()},
) -> None:
    """Published file -> folder of ours, or back: `published` gives the content of the file, `ours` the weights of the
    folder. Nothing is overwritten.
    """
    to_published = output.suffix in (".pt", ".ckpt")
    if to_published == is_published(source):
        raise UserError(f"{source} and --output must be a published file and a folder of ours, in either order")
    if output.exists():
        raise CheckpointError(f"{output} exists already; give another --output")
    network = load()
    facts = network.provenance
    if to_published:
        write_published(output, published(network))
    else:
        export_folder(output, facts.config, ours(network))
    logger.info("%s (%s weights, fingerprint %s) -> %s", source, facts.weights, facts.fingerprint[:16], output)
