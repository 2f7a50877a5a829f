"""The checkpoints of one run: crash-safe saving, exact resuming, pruning.

    <run>/checkpoints/step_00010000/
        state/               the training state, through torch.distributed.checkpoint (for any number of processes)
        model.safetensors    the weights alone, and ema.safetensors if there is an EMA: what `load_tokenizer` reads
        config.yaml          the config that made them
        manifest.json        step, stamp, what data in which order, size and SHA-256 of every file; written last

A checkpoint is written under a temporary name, synced to disk and renamed once; a folder without a valid manifest does
not exist for a resume. Weights are safetensors and safe to share. `state/` is for resuming one's own run: torch's
format holds pickled metadata, so a state from an untrusted source must not be resumed.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from omegaconf import OmegaConf
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from engine import plugins
from engine.atomic_file import sync_to_disk, write_atomic
from engine.checkpoint.manifest import (
    ORDER_KEY,
    CheckpointError,
    checkpoint_folders,
    file_sha256,
    find_damage,
    json_digest,
    order_version_of,
    read_manifest,
)
from engine.checkpoint.weights import WeightSets, shorten, write_weights
from engine.config import differences
from engine.data.identity import Facts
from engine.data.identity import require_same as require_same_data
from engine.data.order import NEWEST_ORDER
from engine.json_text import as_read_back, to_json
from engine.messages import logger
from engine.world import World


class Retention(Protocol):
    """Which checkpoints of a run stay: the part of `engine.loop.LoopConfig` that the store reads."""

    keep_last: int
    keep_every: int


@dataclass
class CheckpointStore:
    """The checkpoints of one run; all ranks call `save` and `load_latest` together.

    `parts`, in both, are `Stateful` objects by name. With `asynchronous`, `save` returns once the state is copied to
    host memory; a thread writes it in the same order.
    """

    run_dir: Path
    world: World
    config: Any  # root config of the run
    keep_last: int = 2  # newest checkpoints that stay
    keep_every: int = 0  # also keep every checkpoint at a multiple of this step; 0 = off
    frozen_sections: tuple[str, ...] = ("model",)  # config sections, or dotted keys, that must be equal for a resume
    stamp: dict[str, Any] = field(default_factory=dict)  # facts that travel with the weights, such as `weights: random`
    frozen_stamps: tuple[str, ...] = ()  # keys of the stamp whose facts must be equal for a resume
    data: Mapping[str, Facts] = field(default_factory=dict)  # the data of this run by split; see engine.data.identity
    accept_changed_data: bool = False  # whether a resume may find other data
    order_version: int = NEWEST_ORDER  # of a new run; `load_latest` sets that of the checkpoint (engine.data.order)
    asynchronous: bool = False

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)  # starts no thread before the first use
        self._pending: Future | None = None  # the save that is under way
        self.stamp = {**self.stamp, **plugins.stamp()}
        self._group = self.world.side_group() if self.asynchronous else None

    @classmethod
    def for_run(cls, run_dir: Path, loop: Retention, world: World, config: Any, **options: Any) -> CheckpointStore:
        """The store of a run whose section `loop` says which checkpoints stay; `options` are the other fields."""
        return cls(run_dir, world, config, keep_last=loop.keep_last, keep_every=loop.keep_every, **options)

    @property
    def checkpoints_dir(self) -> Path:
        """Where the checkpoints are."""
        return self.run_dir / "checkpoints"

    # -------------------------------------------------------------------------------------------- saving
    def save(
        self, step: int, parts: Mapping[str, Any], weights: Callable[[], WeightSets], *, wait: bool = True
    ) -> Path:
        """Saves the state after `step` steps, once the save before it has ended.

        With `wait` the checkpoint is on disk when this returns. On any failure nothing half-written stays and older
        checkpoints are untouched.

        Raises CheckpointError if it, or the asynchronous save before it, could not be written.
        """
        self.wait()
        folder = self.checkpoints_dir / f"step_{step:08d}"
        if find_damage(folder) is None:
            return folder

        state = {name: part.state_dict() for name, part in parts.items()}
        weight_sets = weights()
        if wait or not self.asynchronous:
            self._write(step, folder, state, weight_sets)
        else:
            state_copy = _copy_to_host(state)
            weights_copy = _copy_to_host(weight_sets)
            self._pending = self._pool.submit(self._write, step, folder, state_copy, weights_copy)
        return folder

    def wait(self) -> None:
        """Returns when no save is under way; raises the failure of the last one."""
        pending = self._pending
        self._pending = None
        if pending is not None:
            pending.result()

    def _write(self, step: int, folder: Path, state: dict[str, Any], weights: WeightSets) -> None:
        """Writes one checkpoint: every rank its part of the state, the main process all the rest."""
        from engine.checkpoint import training_state  # here, because it is slow to import

        temporary = self.checkpoints_dir / f".writing_{folder.name}"
        num_bytes = _num_bytes(state) + _num_bytes(weights)
        try:
            self._on_main(lambda: self._begin(temporary, folder, num_bytes))

            training_state.save_state(state, temporary / "state", self._group, is_alone=self.world.size == 1)

            self._on_main(lambda: self._finish(temporary, folder, step, weights))
        except training_state.FAILURES as error:
            # The failure of one rank is raised on all of them, by torch and by `_on_main`.
            if self.world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise _explain(training_state.cause_of(error), folder) from error

    def _on_main(self, action: Callable[[], None]) -> None:
        """Runs `action` on the main process, while the others wait. Its failure is raised on every rank.

        A rank that did not hear of it would wait until the collective fails, hours later.
        """
        error: BaseException | None = None
        if self.world.is_main:
            try:
                action()
            except Exception as caught:
                error = caught
        failure = self.world.main_failure(str(error) or repr(error) if error else None, self._group)
        if error is not None:
            raise error
        if failure is not None:
            raise CheckpointError(f"the main process could not save: {failure}")

    def _begin(self, temporary: Path, folder: Path, num_bytes: int) -> None:
        """Makes an empty `temporary` folder, and sees that there is space."""
        self._clear(folder)
        temporary.mkdir()
        self._check_space(num_bytes)

    def _clear(self, folder: Path) -> None:
        """Removes a damaged checkpoint `folder`, and what a crash in the middle of another left behind."""
        self.checkpoints_dir.mkdir(parents=True, exist_ok=True)
        for torn in self.checkpoints_dir.glob(".*ing_step_*"):
            shutil.rmtree(torn, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _check_space(self, num_bytes: int) -> None:
        """Raises OSError if the disk is too full, before anything is written."""
        free = shutil.disk_usage(self.checkpoints_dir).free
        if num_bytes > free:
            raise OSError(errno.ENOSPC, f"{num_bytes / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free")

    def _finish(self, temporary: Path, folder: Path, step: int, weights: WeightSets) -> None:
        """Adds weights and manifest to a folder that holds the state, and gives it its name."""
        # Everything is on disk before the manifest says so.
        write_weights(temporary, weights, self.config)
        paths = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in paths:
            sync_to_disk(path)

        # The digest is taken of what a reader will parse, where tuples have become lists.
        files = {
            str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in paths
        }
        facts = {"step": step, "stamp": self.stamp, "data": self.data, ORDER_KEY: self.order_version, "files": files}
        manifest = as_read_back(facts)
        text = to_json(manifest | {"digest": json_digest(manifest)}, indent=1)
        write_atomic(temporary / "manifest.json", text)

        # One rename makes it a checkpoint; only then may older ones go.
        sync_to_disk(temporary)
        temporary.rename(folder)
        sync_to_disk(self.checkpoints_dir)
        self._prune(step)

    def _prune(self, newest: int) -> None:
        """Removes old checkpoints up to step `newest`, never the `keep_last` newest or those of `keep_every`."""
        steps = {folder: read_manifest(folder)["step"] for folder in checkpoint_folders(self.run_dir)}
        written = [folder for folder, step in steps.items() if step <= newest]
        for old in written[: -max(1, self.keep_last)]:
            if self.keep_every and steps[old] % self.keep_every == 0:
                continue
            # Renamed first: a kill in the middle must not leave half a folder under the name of a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f".removing_{old.name}")))

    # -------------------------------------------------------------------------------------------- resuming
    def load_latest(self, parts: Mapping[str, Any]) -> int:
        """Restores the newest undamaged checkpoint into `parts`; returns its step, or 0 where there is none.

        Raises CheckpointError if it was made by another architecture or recipe, or does not fit `parts`.
        """
        from engine.checkpoint import training_state  # here, because it is slow to import

        for folder in reversed(checkpoint_folders(self.run_dir)):
            damage = find_damage(folder)
            if damage is not None:
                logger.warning("checkpoint %s is damaged (%s); trying the one before it", folder, damage)
                continue

            manifest = read_manifest(folder)
            changes = self._check_same(folder, manifest)
            try:
                training_state.load_state(dict(parts), folder / "state", is_alone=self.world.size == 1)
            except training_state.FAILURES as error:
                cause = " ".join(str(training_state.cause_of(error)).split())[:500]
                raise CheckpointError(f"{folder} does not fit this run: {cause}") from error

            self.order_version = order_version_of(manifest)
            if self.world.is_main:
                for line in plugins.changes(manifest.get("stamp", {}).get("plugins", {})):
                    logger.info(line)
                for key, (old, new) in changes.items():
                    logger.info("config changed since the checkpoint: %s: %r -> %r", key, old, new)
            return int(manifest["step"])
        return 0

    def is_frozen(self, key: str) -> bool:
        """Whether a dotted config key must be equal for a resume: the key itself, or its top section."""
        return key in self.frozen_sections or key.split(".")[0] in self.frozen_sections

    def _check_same(self, folder: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Refuses a checkpoint of another architecture, with another stamp, or of other data.

        Returns {dotted key: (old value, new value)} of the config keys that have changed.
        """
        changes = differences(OmegaConf.load(folder / "config.yaml"), self.config)
        changes.pop("plugins", None)  # their stamp says what has changed in them
        frozen_changes = [
            f"{key}: checkpoint {old!r}, now {new!r}" for key, (old, new) in changes.items() if self.is_frozen(key)
        ]
        if frozen_changes:
            title = f"{folder} was made by another architecture or recipe:"
            raise CheckpointError(
                "\n  ".join([title, *shorten(frozen_changes)]) + "\nUse another loop.run_dir to start a new run"
            )

        stamp = manifest.get("stamp", {})
        for key in self.frozen_stamps:
            if stamp.get(key) != self.stamp.get(key):
                raise CheckpointError(
                    f"{folder} has the stamp {key}={stamp.get(key)!r}, this run has {self.stamp.get(key)!r}; "
                    "use another loop.run_dir to start a new run"
                )
        require_same_data(manifest.get("data"), self.data, str(folder), self.accept_changed_data)
        return changes


def _explain(error: BaseException, folder: Path) -> BaseException:
    """A failure to write as a CheckpointError that says what to do; any other error as it is."""
    text = " ".join(str(error).split())
    is_disk_error = isinstance(error, OSError | SafetensorError)
    if is_disk_error or "No space left" in text or "failed writing" in text:
        return CheckpointError(
            f"checkpoint {folder} could not be written: {text}. Older checkpoints are untouched; "
            "free some space and start the same command again"
        )
    return error


def _num_bytes(tree: Any) -> int:
    """The bytes of all tensors in nested containers."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(tree) if isinstance(t, Tensor))


def _copy_to_host(tree: Any) -> Any:
    """Copies all tensors in nested containers to host memory: the training goes on and changes them."""
    return tree_map_only(Tensor, lambda t: t.detach().to("cpu", copy=True), tree)
