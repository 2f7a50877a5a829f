"""One SHA-256 over all that the newest checkpoint of a run holds, so that anyone can check that two runs agree.

    python -m evaluations.fingerprint runs/quickstart/tokenizer
    python -m evaluations.fingerprint runs/quickstart/gpt --parts       (one line for each part, to see what differs)

Digested are weights, optimizers, averaged weights, counters, the step, and the next 8 sample ids: the images that the
next updates would see, which follow from seed, position and the data set (it must be where the config says). Names of
folders, clocks and the number of processes do not enter. A state is read by torch's loader: of own runs only.
"""

from __future__ import annotations

import argparse
import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from omegaconf import DictConfig
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from autoregressive.codes import CodeStore
from engine.checkpoint.manifest import CheckpointError, checkpoint_folders, find_damage, phase_folders, read_manifest
from engine.checkpoint.store import FAILURES
from engine.cli import entry_parser, run_entry
from engine.config import merge_config, read_yaml
from engine.data.config import DataConfig
from engine.data.sources import open_source
from engine.data.stream import index_at

NUM_IDS = 8


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or one of its checkpoints")
    parser.add_argument("--parts", action="store_true", help="also the digest of each part")
    return parser.parse_args()


def saved_state(folder: Path) -> dict[str, Any]:
    """{dotted name: tensor or value} of the training state of a checkpoint, whatever number of processes wrote it."""
    try:
        entries = dcp.FileSystemReader(str(folder / "state")).read_metadata().state_dict_metadata
        state = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            if isinstance(entry, TensorStorageMetadata)
            else None
            for name, entry in entries.items()
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, checkpoint_id=str(folder / "state"), no_dist=True)
    except FAILURES as error:
        raise CheckpointError(f"{folder / 'state'} cannot be read: {' '.join(str(error).split())[:300]}") from error
    return state


def steps_before(run: Path) -> int:
    """The updates of the phases before `run`, where that is the folder of a phase: the order of the data goes on."""
    phases = phase_folders(run.parent)
    earlier = phases[: phases.index(run)] if run in phases else []
    return sum(read_yaml(phase / "config.yaml").loop.steps for phase in earlier)


def next_ids(config: DictConfig, step: int) -> list[int]:
    """Which images or codes the run of `config` would see next after `step` updates."""
    if "codes" in config.data:
        count = len(CodeStore(config.data.codes, "train"))
    else:
        count = len(open_source(merge_config(DataConfig, [("config.yaml", config.data)]), "train"))
    first = step * config.data.global_batch_size
    return [index_at(config.loop.seed, first + i, count) for i in range(NUM_IDS)]


def digests(run: Path) -> dict[str, str]:
    """{part: SHA-256} of the newest checkpoint of a run; the step and the sample ids are parts as well."""
    folders = [c for part in (run, *phase_folders(run)) for c in checkpoint_folders(part)]
    folders = [run] if (run / "manifest.json").is_file() else folders
    if not folders:
        raise CheckpointError(f"{run} holds no finished checkpoint")
    problem = find_damage(folders[-1])
    if problem is not None:
        raise CheckpointError(f"{folders[-1]} is damaged: {problem}")
    step = read_manifest(folders[-1])["step"]
    parts = {"step": hashlib.sha256(str(step).encode())}
    for name, value in sorted(saved_state(folders[-1]).items()):
        part = parts.setdefault(".".join(name.split(".")[:2]), hashlib.sha256())
        if isinstance(value, Tensor):
            part.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            part.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            part.update(f"{name} {value!r}\n".encode())
    ids = next_ids(read_yaml(folders[-1] / "config.yaml"), steps_before(folders[-1].resolve().parents[1]) + step)
    parts[f"next {NUM_IDS} sample ids"] = hashlib.sha256(str(ids).encode())
    return {name: part.hexdigest() for name, part in parts.items()}


def whole(parts: dict[str, str]) -> str:
    """The one digest over all parts."""
    return hashlib.sha256("".join(f"{name} {parts[name]}\n" for name in sorted(parts)).encode()).hexdigest()


def main() -> None:
    args = parse_args()
    parts = digests(args.run)
    print(whole(parts))
    if args.parts:
        print("\n".join(f"{digest}  {name}" for name, digest in sorted(parts.items())))


if __name__ == "__main__":
    run_entry(main)
