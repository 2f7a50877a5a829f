"""Weights as safetensors: reading, strict loading, exporting, and the fingerprint of a network."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, file_sha256, phase_folders, read_manifest
from engine.config import save_config
from engine.parallel import shard_like


def num_parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


WeightSets = Mapping[str, Mapping[str, Tensor]]


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters: the identity of a network, wherever it is stored."""
    digest = hashlib.sha256()
    for name, value in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file, memory-mapped; a damaged one is an error that names it."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str | Path, *, assign: bool = False) -> None:
    """Loads `state` into `module`; any missing, unexpected or misshapen tensor is an error that names the first few.

    `assign` puts the tensors themselves in place (of a module on the meta device) instead of copying their values.
    """
    own = module.state_dict()
    problems = [f"missing: {k}" for k in own if k not in state]
    problems += [f"unexpected: {k}" for k in state if k not in own]
    problems += [
        f"shape of {k}: file has {tuple(state[k].shape)}, model has {tuple(own[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if problems:
        more = f"\n  ... and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(f"{source} does not fit this model:\n  " + "\n  ".join(problems[:6]) + more)
    module.load_state_dict({k: shard_like(v, own[k]) for k, v in state.items()}, assign=assign)


def export_folder(folder: Path, config: Any, weights: WeightSets) -> None:
    """Writes weights (`model`, also `ema`) without training state, and config.yaml, in one piece, where nothing is."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_weights(temporary, weights, config)
    temporary.rename(folder)


def write_weights(folder: Path, weights: WeightSets, config: Any) -> None:
    for name, state in weights.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / f"{name}.safetensors")
    save_config(config, folder / "config.yaml")


@dataclass(frozen=True)
class WeightsFile:
    """Where the weights of a network lie: a folder of ours and which of its files was picked."""

    folder: Path  # has config.yaml and <kind>.safetensors
    kind: str  # "ema" or "model"
    stamp: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.kind}.safetensors"


def find_weights(path: str | Path, prefer: str, what: str) -> WeightsFile:
    """The weights under `path`: a run folder (its newest checkpoint), a checkpoint, or an exported folder.

    `prefer` is `ema`, `model` or `auto` (ema where there is one). `what` names the network in messages.
    """
    folder = Path(path)
    if prefer not in ("auto", "ema", "model"):
        raise CheckpointError(f"weights={prefer!r} is not known; choose one of: auto, ema, model")
    if not folder.is_dir():
        raise CheckpointError(f"{what} {folder} is not a folder of weights (a run, a checkpoint, or an exported model)")
    if not (folder / "model.safetensors").is_file():
        checkpoints = [c for run in (folder, *phase_folders(folder)) for c in checkpoint_folders(run)]
        if not checkpoints:
            raise CheckpointError(f"{what} {folder} holds neither model.safetensors nor a finished checkpoint")
        folder = checkpoints[-1]
    manifest = read_manifest(folder)
    listed = manifest is not None and "ema.safetensors" in manifest["files"]  # then a lost file is an error
    has_ema = listed or (folder / "ema.safetensors").is_file()
    kind = ("ema" if has_ema else "model") if prefer == "auto" else prefer
    if not (folder / f"{kind}.safetensors").is_file():
        raise CheckpointError(
            f"{what} {folder} has no {kind}.safetensors; use weights={'model' if kind == 'ema' else 'ema'}"
        )
    if manifest is not None:
        entry, file = manifest["files"].get(f"{kind}.safetensors"), folder / f"{kind}.safetensors"
        if entry is None or entry["size"] != file.stat().st_size or entry["sha256"] != file_sha256(file):
            raise CheckpointError(f"{file} is damaged: its size or hash is not that of manifest.json")
    return WeightsFile(folder, kind, (manifest or {}).get("stamp", {}))
