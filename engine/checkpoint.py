"""Crash-safe checkpoints.

    <run>/checkpoints/step_00010000/
        state/               the training state, through torch.distributed.checkpoint (for any number of processes)
        model.safetensors    the weights alone, and ema.safetensors where they are averaged: what `load_tokenizer` reads
        config.yaml          the config that made them
        manifest.json        step, stamp, and size and SHA-256 of every file; written last

A checkpoint is written under a temporary name, synced to disk and renamed once; a folder without a valid manifest does
not exist for a resume. Weights are safetensors and safe to share. `state/` is for resuming one's own run: torch's
format holds pickled metadata, so a state from an untrusted source must not be resumed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils._pytree import tree_leaves, tree_map_only

from engine.config import UserError, differences, logger, save_config
from engine.distributed import World, cut_like

STEP_NAME = re.compile(r"step_\d{8,}")
FAILURES = (Exception, CheckpointException)  # torch derives its own from BaseException
FROZEN_STAMPS = ("tokenizer_fingerprint", "weights", "features")  # facts that a resume may not change
Weights = Mapping[str, Mapping[str, Tensor]]


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message names the file and the cause."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters: the identity of a network, wherever it is stored."""
    digest = hashlib.sha256()
    for name, value in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str) -> None:
    """Writes a small text file so that a crash leaves either the old or the new content."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)


def _digest(manifest: Mapping[str, Any]) -> str:
    """The hash of a manifest's content, which it carries itself: its step and stamp are in no file that it lists."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint folder, or None where it is missing or unreadable."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    if not isinstance(manifest, dict) or not {"step", "files"} <= manifest.keys():
        return None
    return manifest if manifest.pop("digest", None) in (None, _digest(manifest)) else None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file is compared with the manifest."""
    manifest = read_manifest(folder)
    if manifest is None:
        return "manifest.json is missing or unreadable"
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        if file_sha256(path) != expected["sha256"]:
            return f"the hash of {name} is not that of the manifest"
    return None


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run that have a manifest, oldest first."""
    found = (f for f in (run_dir / "checkpoints").glob("step_*") if STEP_NAME.fullmatch(f.name))
    return sorted((f for f in found if read_manifest(f) is not None), key=lambda f: int(f.name.removeprefix("step_")))


def phase_folders(run_dir: Path) -> list[Path]:
    """The folders of the phases of a run that has any, in order."""
    return sorted(run_dir.glob("phase_*"), key=lambda folder: (len(folder.name), folder.name))


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
    module.load_state_dict({k: cut_like(v, own[k]) for k, v in state.items()}, assign=assign)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a single process saves as a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _cause(error: BaseException) -> BaseException:
    """The error of the first rank that failed, without the traceback that torch writes into its message."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def export_folder(folder: Path, config: Any, weights: Weights) -> None:
    """Writes weights (`model`, also `ema`) without training state, and config.yaml, in one piece, where nothing is."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_weights(temporary, weights, config)
    temporary.rename(folder)


def _write_weights(folder: Path, weights: Weights, config: Any) -> None:
    for name, state in weights.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / f"{name}.safetensors")
    save_config(config, folder / "config.yaml")


def _tensor_bytes(tree: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(tree) if isinstance(t, Tensor))


def _copied(tree: Any) -> Any:
    """The same tree with its tensors copied to host memory: the originals may change."""
    return tree_map_only(Tensor, lambda t: t.detach().to("cpu", copy=True), tree)


@dataclass
class CheckpointStore:
    """The checkpoints of one run. `parts` are `Stateful` objects by name; all ranks call `save` and `load_latest`.

    With `asynchronous`, `save` returns once the state is copied to host memory; a thread writes it in the same order.
    """

    run_dir: Path
    world: World
    config: Any
    keep_last: int = 2  # newest checkpoints that stay
    keep_every: int = 0  # and every one whose step is a multiple of this; 0 = none
    frozen_sections: tuple[str, ...] = ("model",)  # config sections, or dotted keys, that must be equal for a resume
    stamp: dict[str, Any] = field(default_factory=dict)  # facts that travel with the weights, such as `weights: random`
    asynchronous: bool = False

    def __post_init__(self) -> None:
        self._pool, self._pending = ThreadPoolExecutor(max_workers=1), None  # no thread before the first use
        self._group = self.world.side_group() if self.asynchronous else None

    @property
    def folder(self) -> Path:
        return self.run_dir / "checkpoints"

    def save(self, step: int, parts: Mapping[str, Any], weights: Callable[[], Weights], *, wait: bool = True) -> Path:
        """Writes the state after `step` updates, once the save before it has ended. With `wait` it is on disk then.

        On any failure nothing half-written stays and older checkpoints are untouched.
        """
        self.wait()
        final = self.folder / f"step_{step:08d}"
        if damage(final) is None:
            return final
        state, shared = {name: part.state_dict() for name, part in parts.items()}, weights()
        if wait or not self.asynchronous:
            self._write(step, final, state, shared)
        else:
            self._pending = self._pool.submit(self._write, step, final, _copied(state), _copied(shared))
        return final

    def wait(self) -> None:
        """Returns when no save is under way; raises the failure of the last one."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, final: Path, state: dict[str, Any], weights: Weights) -> None:
        temporary = self.folder / f".writing_{final.name}"
        try:
            if self.world.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                for torn in self.folder.glob(".*ing_step_*"):
                    shutil.rmtree(torn, ignore_errors=True)  # left by a crash while one was written or removed
                shutil.rmtree(final, ignore_errors=True)  # damaged
                temporary.mkdir()
                self._check_space(_tensor_bytes(state) + _tensor_bytes(weights))
            self.world.barrier(self._group)
            with _quiet():
                where, alone = str(temporary / "state"), self.world.size == 1
                dcp.save(state, checkpoint_id=where, process_group=self._group, no_dist=alone)
            if self.world.is_main:
                self._finish(temporary, final, step, weights)
        except FAILURES as error:
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise self._explain(_cause(error), final) from error
        self.world.barrier(self._group)

    def _check_space(self, need: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(errno.ENOSPC, f"{need / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")

    def _finish(self, temporary: Path, final: Path, step: int, weights: Weights) -> None:
        _write_weights(temporary, weights, self.config)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for path in files:
            _sync(path)
        entries = {str(p.relative_to(temporary)): {"size": p.stat().st_size, "sha256": file_sha256(p)} for p in files}
        manifest = {"step": step, "stamp": self.stamp, "files": entries}
        text = json.dumps(manifest | {"digest": _digest(json.loads(json.dumps(manifest)))}, indent=1)
        write_atomic(temporary / "manifest.json", text)
        _sync(temporary)
        temporary.rename(final)
        _sync(self.folder)
        self._prune(step)

    def _prune(self, newest: int) -> None:
        """Removes old checkpoints that this class wrote, never the newest ones or those of `keep_every`."""
        folders = [f for f in checkpoint_folders(self.run_dir) if read_manifest(f)["step"] <= newest]
        for old in folders[: -max(1, self.keep_last)]:
            if not (self.keep_every and read_manifest(old)["step"] % self.keep_every == 0):
                shutil.rmtree(old.rename(old.with_name(f".removing_{old.name}")))  # at once, or not at all

    def _explain(self, error: BaseException, final: Path) -> BaseException:
        text = " ".join(str(error).split())
        if isinstance(error, OSError | SafetensorError) or "No space left" in text or "failed writing" in text:
            return CheckpointError(
                f"checkpoint {final} could not be written: {text}. Older checkpoints are untouched; "
                "free some space and start the same command again"
            )
        return error

    def load_latest(self, parts: Mapping[str, Any]) -> int:
        """Restores the newest undamaged checkpoint into `parts`; returns its step, or 0 where there is none."""
        for folder in reversed(checkpoint_folders(self.run_dir)):
            problem = damage(folder)
            if problem is not None:
                logger.warning("checkpoint %s is damaged (%s); trying the one before it", folder, problem)
                continue
            changed = self._check_same(folder)
            try:
                with _quiet():
                    dcp.load(dict(parts), checkpoint_id=str(folder / "state"), no_dist=self.world.size == 1)
            except FAILURES as error:
                raise CheckpointError(
                    f"{folder} does not fit this run: {' '.join(str(_cause(error)).split())[:500]}"
                ) from error
            if self.world.is_main:
                for key, (old, new) in changed.items():
                    logger.info("config changed since the checkpoint: %s: %r -> %r", key, old, new)
            return int(read_manifest(folder)["step"])
        return 0

    def _check_same(self, folder: Path) -> dict[str, tuple[Any, Any]]:
        """Refuses a checkpoint of another architecture, or with another stamp; returns the other changed keys."""
        changed = differences(OmegaConf.load(folder / "config.yaml"), self.config)
        frozen = {k: v for k, v in changed.items() if {k, k.split(".")[0]} & {*self.frozen_sections}}
        if frozen:
            lines = [f"{key}: checkpoint {old!r}, now {new!r}" for key, (old, new) in frozen.items()]
            lines[6:] = [f"... and {len(lines) - 6} more"] if len(lines) > 6 else []
            raise CheckpointError(
                "\n  ".join([f"{folder} was made by another architecture or recipe:", *lines])
                + "\nUse another loop.run_dir to start anew"
            )
        stamped = read_manifest(folder).get("stamp", {})
        for key in FROZEN_STAMPS:
            if stamped.get(key) != self.stamp.get(key):
                raise CheckpointError(
                    f"{folder} has the stamp {key}={stamped.get(key)!r}, this run has {self.stamp.get(key)!r}; "
                    "use another loop.run_dir to start anew"
                )
        return changed


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
