"""Writes checkpoint files of the published code bases, and converts in both directions.

Files are read by `engine.checkpoint.foreign`. `convert` is the body of the two converters, `tokenizer.convert` and
`autoregressive.convert`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.atomic_file import atomic_file
from engine.checkpoint.weights import export_folder
from engine.cli import add_weights_flag
from engine.hub import is_address
from engine.messages import UserError, logger
from engine.outputs import require_absent
from engine.preflight import Preflight

States = Mapping[str, Mapping[str, Tensor]]  # {"model", "ema" or another key of a file: state dict}
WITHOUT_KEY = ""  # the only key of a file that is a state dict itself
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")  # of names that no file has yet
WRITTEN_SUFFIXES = (".pt", ".ckpt")  # of the files that a converter writes


def is_published(path: str | Path) -> bool:
    """Whether `path` is a single file, or would be by its name, as opposed to a folder or a repository of the hub."""
    if is_address(path):
        return False
    path = Path(path)
    return path.is_file() or (path.suffix.lower() in SUFFIXES and not path.is_dir())


# ------------------------------------------------------------------------------------------------ writing
def write_published(path: str | Path, states: States) -> None:
    """Writes a file as the published code does, under a temporary name first; see `WITHOUT_KEY`.

    Raises UserError where it exists already: nothing is overwritten.
    """
    path = Path(path)
    require_absent(path, "--output")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        key: {name: tensor.contiguous() for name, tensor in state.items()}  # views would be saved with their base
        for key, state in states.items()
    }
    with atomic_file(path) as temporary:
        torch.save(content.get(WITHOUT_KEY, content), temporary)


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
    add_weights_flag(parser)


def _model_state(network: nn.Module) -> States:
    return {"model": network.state_dict()}


def _writes_file(source: Path, output: Path) -> bool:
    """Whether a conversion writes a published file, not a folder.

    Raises UserError where source and output are both files or both folders.
    """
    writes_file = output.suffix in WRITTEN_SUFFIXES
    if writes_file == is_published(source):
        raise UserError(f"{source} and --output must be a published file and a folder, in either order")
    return writes_file


def conversion_needs(preflight: Preflight, survey: Callable[[], nn.Module], source: Path, output: Path) -> None:
    """Looks for the network to convert, by `survey` of `source`, and for the place of the output."""
    with preflight.collecting():
        survey()
    preflight.new_file(output, "--output")
    with preflight.collecting():
        _writes_file(source, output)


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

    Raises UserError where source and output are both files or both folders, or the output exists already: nothing is
    overwritten.
    """
    writes_file = _writes_file(source, output)
    require_absent(output, "--output")

    network = load()
    provenance = network.provenance
    if writes_file:
        write_published(output, published_states(network))
    else:
        export_folder(output, provenance.config, folder_states(network))

    fingerprint = provenance.fingerprint[:16]
    logger.info("%s (%s weights, fingerprint %s) -> %s", source, provenance.weights, fingerprint, output)
