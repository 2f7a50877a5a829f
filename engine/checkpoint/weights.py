"""Weights as safetensors: find, read, load strictly, export; and a network's fingerprint.

A folder of weights holds `model.safetensors`, `config.yaml` and, where the run has an EMA, `ema.safetensors`. It is a
checkpoint of a run, an exported folder without training state, or a fetched repository of the hub.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine import hub
from engine.checkpoint.manifest import CheckpointError, file_sha256, newest_checkpoint, read_manifest
from engine.checkpoint.near_sources import near_sources
from engine.checkpoint.stamp import header_of, read_stamp
from engine.config import save_config
from engine.json_text import to_json
from engine.messages import UserError
from engine.outputs import require_absent
from engine.parallel import shard_like
from engine.shipped_models import is_shipped, shipped_folder

WEIGHT_CHOICES = ("auto", "ema", "model")  # auto: the EMA if there is one, else the raw weights
NAMED_OF_A_KIND = 3  # tensors of one kind of problem that a message names
# Kind of network -> its folder, where a folder or repository holds several.
PARTS = {"tokenizer": "tokenizer", "init: tokenizer": "tokenizer", "generator": "gpt"}
WeightSets = Mapping[str, Mapping[str, Tensor]]  # "model", perhaps "ema" -> state dict


def num_parameters(module: nn.Module) -> int:
    """The number of parameters of a network, trained or not."""
    return sum(p.numel() for p in module.parameters())


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters: the identity of a network.

    A network whose results depend on settings that leave no trace in its parameters has a method `code_settings`: what
    that returns enters too, unless it is empty.
    """
    settings = module.code_settings() if hasattr(module, "code_settings") else {}
    return digest_with(module.named_parameters(), settings)


def digest_with(named: Iterable[tuple[str, Tensor]], settings: Mapping[str, Any]) -> str:
    """SHA-256 over named tensors (`tensors_digest`), and over settings unless these are empty."""
    of_parameters = tensors_digest(named)
    if not settings:
        return of_parameters
    return hashlib.sha256(f"{of_parameters}{to_json(settings, sort_keys=True)}".encode()).hexdigest()


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes and float32 bytes of named tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def shorten(lines: list[str], limit: int = 6) -> list[str]:
    """The first `limit` lines of a message, and how many more there are."""
    if len(lines) <= limit:
        return lines
    return [*lines[:limit], f"... and {len(lines) - limit} more"]


# ------------------------------------------------------------------------------------------------ loading
def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file, memory-mapped.

    Raises CheckpointError if it cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without storage: none of their numbers is read.

    Raises CheckpointError if its header cannot be read, or speaks of more bytes than the file has.
    """
    return {name: tensor.to("meta") for name, tensor in read_weights(path).items()}


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str | Path,
    *,
    assign: bool = False,
    shown_as: Callable[[str], str] = str,
) -> None:
    """Loads `state`, which comes from `source`, into `module`; names and shapes must be equal, and numbers finite.

    The numbers become those of `module`: half precision becomes float32, but whole numbers never become weights, nor do
    complex ones. The module owns its memory afterwards, so a file that is written again later changes nothing.

    `assign` puts copies in place of the tensors of a module on the meta device, instead of copying their values.
    `shown_as` gives the name of a tensor in `source`, for messages.

    Raises CheckpointError that names the first tensors which are missing, unexpected, of another shape or kind of
    numbers, or not finite.
    """
    require_fit(module, state, source, shown_as)

    model_state = module.state_dict()
    converted = {name: state[name].to(value.dtype, copy=assign) for name, value in model_state.items()}
    require_finite_weights(module, converted, source, shown_as)
    sharded = {name: shard_like(value, model_state[name]) for name, value in converted.items()}
    module.load_state_dict(sharded, assign=assign)


def require_fit(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, shown_as: Callable[[str], str] = str
) -> None:
    """Raises CheckpointError that names tensors unless `state` has the names, shapes and kinds of numbers of
    `module`.

    Both may be on the meta device: no number is looked at.
    """
    model_state = module.state_dict()
    missing = [f"missing: {shown_as(name)}" for name in model_state if name not in state]
    unexpected = [f"unexpected: {shown_as(name)}" for name in state if name not in model_state]
    pairs = {name: (state[name], value) for name, value in model_state.items() if name in state}
    misshapen = [
        f"shape of {shown_as(name)}: file has {tuple(stored.shape)}, model has {tuple(value.shape)}"
        for name, (stored, value) in pairs.items()
        if stored.shape != value.shape
    ]
    other_numbers = [
        f"numbers of {shown_as(name)}: file has {_dtype_name(stored)}, model has {_dtype_name(value)}"
        for name, (stored, value) in pairs.items()
        if stored.is_floating_point() != value.is_floating_point() or stored.is_complex() != value.is_complex()
    ]

    # Some of each kind: one list alone would hide the other.
    problems = [missing, unexpected, misshapen, other_numbers]
    if any(problems):
        lines = [line for kind in problems for line in kind[:NAMED_OF_A_KIND]]
        num_left_out = sum(len(kind) for kind in problems) - len(lines)
        more = [f"... and {num_left_out} more"] if num_left_out else []
        raise CheckpointError("\n  ".join([f"{source} does not fit this model:", *lines, *more]))


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@torch.no_grad()
def require_finite_weights(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, shown_as: Callable[[str], str] = str
) -> None:
    """Raises CheckpointError that names the first tensors of `state` with NaN or infinite numbers.

    One pass over each tensor, without a copy. A buffer of `module` may hold -inf, as masks of attention do.
    """
    parameters = {name for name, _ in module.named_parameters()}
    bad = []
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        least, greatest = (float(value) for value in tensor.detach().aminmax())  # NaN if any number is
        is_mask = least == -math.inf and name not in parameters
        if not math.isfinite(greatest) or not (math.isfinite(least) or is_mask):
            what = "NaN" if math.isnan(least) else "infinite numbers"
            bad.append(f"{what}: {shown_as(name)}")
    if bad:
        raise CheckpointError("\n  ".join([f"{source} holds weights that are not finite:", *shorten(bad)]))


# ------------------------------------------------------------------------------------------------ writing
def write_weights(folder: Path, weights: WeightSets, config: Any, stamp: Mapping[str, Any] | None = None) -> None:
    """Writes one safetensors file per set of weights, and config.yaml, into a folder that exists.

    A `stamp` goes into the header of each file.
    """
    save_config(config, folder / "config.yaml")
    mode = (folder / "config.yaml").stat().st_mode
    for name, state in weights.items():
        path = folder / f"{name}.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, path, metadata=header_of(stamp))
        path.chmod(mode)  # safetensors lets nobody else read it; the umask decides, as for every other file


def export_folder(folder: Path, config: Any, weights: WeightSets, stamp: Mapping[str, Any] | None = None) -> None:
    """Writes weights and config.yaml to a folder that does not exist yet, all or nothing; see `write_weights`.

    Raises UserError where the folder exists or cannot be made, as where a file is in the place of a folder above it.
    """
    in_the_way = next((place for place in (folder, *folder.parents) if place.is_file()), None)
    if in_the_way is not None:
        raise UserError(f"{in_the_way} is a file, and a folder is needed there; nothing is overwritten: name another")
    require_absent(folder, "the folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")  # of this process, so that it may be removed
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    try:
        write_weights(temporary, weights, config, stamp)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# ------------------------------------------------------------------------------------------------ finding
def is_average(kind: str, stamp: Mapping[str, Any]) -> bool:
    """Whether weights are an average (EMA): of that kind, or the only ones of a folder whose stamp says it."""
    return kind == "ema" or stamp.get("weights") == "ema"


@dataclass(frozen=True)
class WeightsFile:
    """Where the weights of a network are: a folder and which of its files was picked."""

    folder: Path  # has config.yaml and <kind>.safetensors
    kind: str  # "ema" or "model"
    stamp: dict[str, Any]  # facts that travel with the weights, from the manifest or the header of their file
    origin: str = ""  # address on the hub, or name of a shipped model, where they came from there

    @property
    def shown(self) -> str:
        """Where they are, for people and results."""
        return self.origin or str(self.folder)

    @property
    def is_average(self) -> bool:
        """Whether these are averaged weights (EMA)."""
        return is_average(self.kind, self.stamp)

    @property
    def path(self) -> Path:
        """The safetensors file."""
        return self.folder / f"{self.kind}.safetensors"


def check_weight_choice(prefer: str) -> None:
    """Raises CheckpointError if `prefer` is none of `WEIGHT_CHOICES`."""
    if prefer not in WEIGHT_CHOICES:
        raise CheckpointError(f"weights={prefer!r} is not known; choose one of: {', '.join(WEIGHT_CHOICES)}")


def find_weights(path: str | Path, prefer: str, what: str, *, hashed: bool = True) -> WeightsFile:
    """Finds the weights under `path`.

    `path` is a run folder (its newest checkpoint counts), a checkpoint, an exported folder, an address of the hub
    (`engine.hub`), or the name of a model that comes with the program (`engine.shipped_models`). A folder that holds
    several networks stands for the one that `what` names, which is also its name in messages. `prefer` is `ema`,
    `model` or `auto` (the EMA where there is one). Without `hashed`, the size of the file stands for its hash, which is
    quick.

    Raises CheckpointError if there are no such weights, or their file is not the one that the manifest lists, and
    UserError where the hub does not give them.
    """
    check_weight_choice(prefer)
    if is_shipped(path):
        weights = _weights_in(shipped_folder(path, PARTS.get(what, "")), prefer, what, hashed)
        return replace(weights, origin=str(path))
    if hub.is_address(path):
        copy = hub.fetch(str(path), PARTS.get(what))
        weights = _weights_in(copy.folder, prefer, what, hashed)
        stamp = copy.stamp([weights.path, copy.folder / "config.yaml"] if hashed else [])
        return replace(weights, stamp={**weights.stamp, **stamp}, origin=copy.text())
    return _weights_in(_weights_folder(path, what), prefer, what, hashed)


def _weights_in(folder: Path, prefer: str, what: str, hashed: bool) -> WeightsFile:
    """The weights right in a folder; see `find_weights`."""
    manifest = read_manifest(folder)
    if manifest is None and (folder / "manifest.json").exists():
        raise CheckpointError(f"{folder / 'manifest.json'} is damaged, so nothing in this folder can be checked by it")

    # An EMA that the manifest lists and the folder lacks is an error, not a reason to take the raw weights.
    is_ema_listed = manifest is not None and "ema.safetensors" in manifest["files"]
    kind = prefer
    if prefer == "auto":
        has_ema = is_ema_listed or (folder / "ema.safetensors").is_file()
        kind = "ema" if has_ema else "model"
    path = folder / f"{kind}.safetensors"
    if not path.is_file():
        other_kind = "model" if kind == "ema" else "ema"
        raise CheckpointError(f"{what} {folder} has no {kind}.safetensors; use weights={other_kind}")
    if manifest is None:
        return WeightsFile(folder, kind, read_stamp(path))
    _check_listed(path, manifest, hashed)
    _check_listed(folder / "config.yaml", manifest, hashed)
    return WeightsFile(folder, kind, manifest.get("stamp", {}))


def _weights_folder(path: str | Path, what: str) -> Path:
    """The folder `path` itself if it holds weights, else the newest checkpoint of the run in it.

    Of a run in phases, the newest checkpoint of the last phase that has one.
    """
    folder = Path(path)
    if folder.is_file():
        raise CheckpointError(
            f"{what} {folder} is a file, and a folder is needed; if it is a published checkpoint, convert it first "
            "(see docs/checkpoints.md)"
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"{what} {path} is not a folder of weights (a run, a checkpoint, or an exported model)"
            f"{near_sources(str(path))}"
        )

    # Weights right here, those of a run, or those of one network of several.
    if (folder / "model.safetensors").is_file():
        return folder
    checkpoint = newest_checkpoint(folder)
    if checkpoint is not None:
        return checkpoint
    part = folder / PARTS.get(what, "")
    if part != folder and part.is_dir():
        return _weights_folder(part, what)
    raise CheckpointError(f"{what} {folder} holds neither model.safetensors nor a finished checkpoint")


def _check_listed(path: Path, manifest: Mapping[str, Any], hashed: bool) -> None:
    """Raises CheckpointError unless a file is the one that the manifest lists."""
    expected = manifest["files"].get(path.name)
    is_there = expected is not None and path.is_file() and expected["size"] == path.stat().st_size
    if not is_there or (hashed and expected["sha256"] != file_sha256(path)):
        raise CheckpointError(f"{path} is damaged: its size or hash is not that of manifest.json")
