"""Prints one SHA-256 over everything in the newest checkpoint of a run, or the first difference between two runs.

    python -m evaluations.fingerprint runs/quickstart/tokenizer
    python -m evaluations.fingerprint runs/quickstart/gpt --parts       (one line per part, to see what differs)
    python -m evaluations.fingerprint runs/A runs/B                     (0: equal; 1: different, with the first tensor)

The digest covers weights, EMA, optimizers, counters, the step, and the next 8 sample ids, which name the images that
training would use next. The sample ids depend on the seed, the position and the data set, so the data set must be where
the config says. The names of folders, clock times and the number of processes have no influence. The training state is
read by PyTorch's loader, so use this command only on your own runs.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from autoregressive.codes import CodeStore
from autoregressive.training.config import images_of
from engine.checkpoint.manifest import (
    CheckpointError,
    find_damage,
    newest_checkpoint,
    order_version_of,
    phase_folders,
    read_manifest,
)
from engine.cli import entry_parser, run_entry
from engine.config import read_yaml
from engine.data.order import SampleOrder
from engine.data.sources import open_source
from engine.preflight import Preflight, require

NUM_IDS = 8  # sample ids that enter the digest
DIFFERENT = 1  # exit code


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or one of its checkpoints")
    parser.add_argument("other", nargs="?", type=Path, help="a second run, to be compared with the first one")
    parser.add_argument("--parts", action="store_true", help="also print the digest of each part")
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------ the checkpoint
def checkpoint_of(run: Path) -> Path:
    """Finds the newest checkpoint of a run or of its last phase, or `run` itself if it is one.

    Raises CheckpointError if there is none.
    """
    folder = run if (run / "manifest.json").is_file() else newest_checkpoint(run)
    if folder is None:
        raise CheckpointError(f"{run} holds no finished checkpoint")
    return folder


def whole_checkpoint(run: Path) -> Path:
    """Finds the checkpoint of a run as `checkpoint_of`. Raises CheckpointError if there is none, or it is damaged."""
    folder = checkpoint_of(run)
    problem = find_damage(folder)
    if problem is not None:
        raise CheckpointError(f"{folder} is damaged: {problem}")
    return folder


def saved_state(folder: Path) -> dict[str, Any]:
    """Reads the training state of a checkpoint: {dotted name: tensor or value}.

    Any number of processes may have written it. Raises CheckpointError if it cannot be read.
    """
    from engine.checkpoint import training_state  # here, because it is slow to import

    path = folder / "state"
    try:
        return training_state.read_state(path)
    except training_state.FAILURES as error:
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error


# ------------------------------------------------------------------------------------------------ the order of the data
def steps_before(run: Path) -> int:
    """Counts the steps of the phases before `run`, if that is the folder of a phase.

    The order of the data goes on over all phases.
    """
    phases = phase_folders(run.parent)
    earlier = phases[: phases.index(run)] if run in phases else []
    return sum(read_yaml(phase / "config.yaml").loop.steps for phase in earlier)


def next_ids(config: DictConfig, step: int, order_version: int) -> list[int]:
    """Finds the images or codes that the run of `config` would see next after `step` steps.

    `order_version` is that of the order in which the run reads them.
    """
    images = images_of(config.data)
    count = len(open_source(images, "train") if images is not None else CodeStore(config.data.codes, "train"))
    first = step * config.data.global_batch_size
    order = SampleOrder(config.loop.seed, count, order_version)
    return order.indices(range(first, first + NUM_IDS)).tolist()


# ------------------------------------------------------------------------------------------------ digests
class Snapshot(NamedTuple):
    """Everything in a checkpoint that the rest of a training depends on."""

    step: int
    state: dict[str, Any]  # dotted name -> tensor or value
    ids: list[int]  # of the next samples


def snapshot_of(run: Path) -> Snapshot:
    """Reads the newest checkpoint of a run. Raises CheckpointError if there is none, or it is damaged."""
    folder = whole_checkpoint(run)
    manifest = read_manifest(folder)
    step = manifest["step"]

    # A checkpoint lies in <run>/checkpoints.
    run_dir = folder.resolve().parents[1]
    ids = next_ids(read_yaml(folder / "config.yaml"), steps_before(run_dir) + step, order_version_of(manifest))
    return Snapshot(step, saved_state(folder), ids)


def part_of(name: str) -> str:
    """The part that a name belongs to: its first two words, such as `tokenizer.ema`."""
    return ".".join(name.split(".")[:2])


def digests(run: Path) -> dict[str, str]:
    """Digests the newest checkpoint of a run: {part: SHA-256}.

    The step and the next sample ids are parts as well.
    """
    snapshot = snapshot_of(run)
    parts = {"step": hashlib.sha256(str(snapshot.step).encode())}
    for name, value in sorted(snapshot.state.items()):
        part = parts.setdefault(part_of(name), hashlib.sha256())
        if isinstance(value, Tensor):
            part.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            part.update(_bytes_of(value).numpy().data)
        else:
            part.update(f"{name} {value!r}\n".encode())
    parts[f"next {NUM_IDS} sample ids"] = hashlib.sha256(str(snapshot.ids).encode())
    return {name: part.hexdigest() for name, part in parts.items()}


def _bytes_of(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, uint8 (number of bytes,)."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def whole(parts: dict[str, str]) -> str:
    """Digests all parts into one."""
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in sorted(parts)).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ two runs
def first_difference(one: Snapshot, other: Snapshot) -> str | None:
    """Names the first part, and in it the first tensor or value, in which two checkpoints differ; None if they agree.

    The step comes first, then the state by name, then the order of the data.
    """
    if one.step != other.step:
        return f"step: {one.step} against {other.step}"
    for name in sorted({*one.state, *other.state}):
        if name not in one.state or name not in other.state:
            which = "first" if name in one.state else "second"
            return f"{part_of(name)}: {name} is in the {which} only"
        difference = _value_difference(one.state[name], other.state[name])
        if difference is not None:
            return f"{part_of(name)}: {name}: {difference}"
    if one.ids != other.ids:
        return f"next {NUM_IDS} sample ids: {one.ids} against {other.ids}"
    return None


def _value_difference(one: Any, other: Any) -> str | None:
    """How two values of a state differ, bit by bit; None if they do not."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return None if repr(one) == repr(other) else f"{one!r} against {other!r}"
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{one.dtype} {tuple(one.shape)} against {other.dtype} {tuple(other.shape)}"
    if torch.equal(_bytes_of(one), _bytes_of(other)):
        return None

    num_different = int((one != other).sum())
    if num_different == 0:
        return "the numbers are equal, their bits are not (zeros of two signs)"
    gaps = (one.double() - other.double()).abs()
    return f"{num_different:,} of {one.numel():,} numbers differ, by up to {gaps.nan_to_num(torch.inf).max():.3g}"


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the checkpoints."""
    for run in (args.run, args.other):
        if run is not None:
            with preflight.collecting():
                preflight.ready.append(f"checkpoint: {checkpoint_of(run)}")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    if args.other is not None:
        difference = first_difference(snapshot_of(args.run), snapshot_of(args.other))
        print("equal" if difference is None else f"different, first in {difference}")
        raise SystemExit(0 if difference is None else DIFFERENT)

    parts = digests(args.run)
    print(whole(parts))
    if args.parts:
        print("\n".join(f"{digest}  {name}" for name, digest in sorted(parts.items())))


if __name__ == "__main__":
    run_entry(main)
