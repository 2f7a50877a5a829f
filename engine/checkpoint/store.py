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
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.utils._pytree import tree_leaves, tree_map_only

from engine import plugins
from engine.checkpoint.manifest import (
    CheckpointError,
    checkpoint_folders,
    file_sha256,
    find_damage,
    manifest_digest,
    read_manifest,
    sync_to_disk,
    write_atomic,
)
from engine.checkpoint.weights import WeightSets, write_weights
from engine.config import differences
from engine.messages import logger
from engine.world import World

FAILURES = (Exception, CheckpointException)  # torch derives its own from BaseException


FROZEN_STAMPS = ("tokenizer_fingerprint", "weights", "features")  # facts that a resume may not change


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a single process saves as a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _cause(error: BaseException) -> BaseException:
    """The error of the first rank that failed, without the traceback that torch writes into its message."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


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
        self.stamp = {**self.stamp, **plugins.stamp()}
        self._group = self.world.side_group() if self.asynchronous else None

    @property
    def folder(self) -> Path:
        return self.run_dir / "checkpoints"

    def save(
        self, step: int, parts: Mapping[str, Any], weights: Callable[[], WeightSets], *, wait: bool = True
    ) -> Path:
        """Writes the state after `step` updates, once the save before it has ended. With `wait` it is on disk then.

        On any failure nothing half-written stays and older checkpoints are untouched.
        """
        self.wait()
        final = self.folder / f"step_{step:08d}"
        if find_damage(final) is None:
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

    def _write(self, step: int, final: Path, state: dict[str, Any], weights: WeightSets) -> None:
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

    def _finish(self, temporary: Path, final: Path, step: int, weights: WeightSets) -> None:
        write_weights(temporary, weights, self.config)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for path in files:
            sync_to_disk(path)
        entries = {str(p.relative_to(temporary)): {"size": p.stat().st_size, "sha256": file_sha256(p)} for p in files}
        manifest = {"step": step, "stamp": self.stamp, "files": entries}
        text = json.dumps(manifest | {"digest": manifest_digest(json.loads(json.dumps(manifest)))}, indent=1)
        write_atomic(temporary / "manifest.json", text)
        sync_to_disk(temporary)
        temporary.rename(final)
        sync_to_disk(self.folder)
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
            problem = find_damage(folder)
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
                for line in plugins.changes(read_manifest(folder).get("stamp", {}).get("plugins", {})):
                    logger.info(line)
                for key, (old, new) in changed.items():
                    logger.info("config changed since the checkpoint: %s: %r -> %r", key, old, new)
            return int(read_manifest(folder)["step"])
        return 0

    def _check_same(self, folder: Path) -> dict[str, tuple[Any, Any]]:
        """Refuses a checkpoint of another architecture, or with another stamp; returns the other changed keys."""
        changed = differences(OmegaConf.load(folder / "config.yaml"), self.config)
        changed.pop("plugins", None)  # the stamp says what of them changed
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
