"""Reads and writes checkpoint files of the published code bases, safely.

Only tensors and plain values are read; no code is ever run. A published `.pt` is a dict with `model` (and `ema`), or a
bare state dict. Its `args` is an `argparse.Namespace`, which is allowed beside tensors, numbers and text. Files are
memory-mapped, so a 12 GB file costs no 12 GB of memory.

`convert` is the body of the two converters, `tokenizer.convert` and `autoregressive.convert`.
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

States = Mapping[str, Mapping[str, Tensor]]  # {"model" or "ema": state dict}
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
WRITTEN_SUFFIXES = (".pt", ".ckpt")  # of the files that a converter writes
WRAPPERS = ("module.", "_orig_mod.")  # prefixes that data parallelism and compilation add to names


def is_published(path: str | Path) -> bool:
    """Whether `path` names a single file in a published format, as opposed to a folder of this project."""
    return Path(path).suffix in SUFFIXES and not Path(path).is_dir()


# ------------------------------------------------------------------------------------------------ reading
def read_published(path: str | Path, order: tuple[str, ...], prefer: str = "auto") -> tuple[dict[str, Tensor], str]:
    """Reads (state dict, the key it was under) from a published file. A bare state dict counts as `model`.

    `order` are the keys to look for, the preferred one first, such as ("ema", "model"); `prefer` is one of them, or
    `auto` for the first that the file has.

    Raises CheckpointError where the file is missing or truncated, holds pickled code, or has none of the keys.
    """
    content = _read(Path(path))
    is_bare = bool(content) and all(isinstance(value, Tensor) for value in content.values())
    if is_bare:
        if prefer == "ema":
            raise CheckpointError(f"{path} is a bare state dict; it has no ema weights")
        picked = "model"
        state = content
    else:
        keys = order if prefer == "auto" else (prefer,)
        picked = next((key for key in keys if isinstance(content.get(key), Mapping)), None)
        if picked is None:
            present = ", ".join(map(str, content)) or "nothing"
            raise CheckpointError(f"{path} has none of the weights {', '.join(keys)}; it holds: {present}")
        state = content[picked]
    logger.info("%s: took the weights %r", path, picked)

    # A state dict may hold plain values beside its tensors; they are no weights.
    return {_without_wrappers(name): value for name, value in state.items() if isinstance(value, Tensor)}, picked


def _without_wrappers(name: str) -> str:
    """The name of a tensor without the prefixes of data parallelism and compilation, however many."""
    for wrapper in WRAPPERS:
        while name.startswith(wrapper):
            name = name.removeprefix(wrapper)
    return name


def _read(path: Path) -> dict[str, Any]:
    """The content of a file. Raises CheckpointError where it cannot be read without running code."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return read_weights(path)

    try:
        is_mappable = zipfile.is_zipfile(path)  # PyTorch's format since 1.6
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except pickle.UnpicklingError as error:
        # PyTorch's message has a line that names the function or class which it refused.
        refused = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), None)
        if refused is not None:
            raise CheckpointError(f"{path} holds pickled code, which is never run: {refused}") from error
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint: {reason}") from error

    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    return content


# ------------------------------------------------------------------------------------------------ writing
def write_published(path: str | Path, states: States) -> None:
    """Writes a file as the published code does, under a temporary name first.

    Raises CheckpointError where it exists already: nothing is overwritten.
    """
    path = Path(path)
    _require_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        key: {name: tensor.contiguous() for name, tensor in state.items()}  # views would be saved with their base
        for key, state in states.items()
    }
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(content, temporary)
    temporary.rename(path)


def _require_absent(path: Path) -> None:
    if path.exists():
        raise CheckpointError(f"{path} exists already; give another --output")


# ------------------------------------------------------------------------------------------------ converting
def add_conversion_flags(parser: argparse.ArgumentParser, checkpoint_flag: str, *config_flags: str) -> None:
    """Adds the flags of a converter.

    `checkpoint_flag` names the source, such as --vq-ckpt; `config_flags` are the spellings of the flag for its YAML.
    """
    parser.add_argument(
        checkpoint_flag, required=True, type=Path, help="a published file, or the folder of a run or a checkpoint"
    )
    parser.add_argument(*config_flags, type=Path, help="YAML file of the architecture, for a published file")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="folder to write, or .pt or .ckpt file to write in the published layout",
    )
    parser.add_argument(
        "--weights",
        default="auto",
        choices=["auto", "ema", "model"],
        help="auto: the EMA if there is one, else the raw weights",
    )


def _model_state(network: nn.Module) -> States:
    return {"model": network.state_dict()}


def convert(
    source: Path,
    output: Path,
    load: Callable[[], nn.Module],
    published_states: Callable[[nn.Module], States],
    folder_states: Callable[[nn.Module], States] = _model_state,
) -> None:
    """Converts a published file into a folder of this project, or a folder into a published file.

    `load` gives the network of `source`, with its `provenance`; `published_states` the content of a file,
    `folder_states` the weights of a folder.

    Raises UserError where source and output are both files or both folders, and CheckpointError where the output exists
    already: nothing is overwritten.
    """
    writes_file = output.suffix in WRITTEN_SUFFIXES
    if writes_file == is_published(source):
        raise UserError(f"{source} and --output must be a published file and a folder, in either order")
    _require_absent(output)

    network = load()
    provenance = network.provenance
    if writes_file:
        write_published(output, published_states(network))
    else:
        export_folder(output, provenance.config, folder_states(network))

    fingerprint = provenance.fingerprint[:16]
    logger.info("%s (%s weights, fingerprint %s) -> %s", source, provenance.weights, fingerprint, output)
