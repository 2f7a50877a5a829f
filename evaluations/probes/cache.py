"""Features of all images of a split, read once and kept in a file."""

from __future__ import annotations

import secrets
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import torch

from autoregressive.code_writer import RowFile
from engine.atomic_file import atomic_file, temporary_path
from engine.checkpoint.manifest import json_digest
from engine.data.classes import Relabeled
from engine.data.config import DataConfig
from engine.data.samples import labeled_batch
from engine.data.sources import ImageSource
from engine.finite import numbered
from engine.progress import progress
from engine.world import World
from evaluations.image_sets import rank_batches
from evaluations.probes.features import ProbedNetwork


def read_features(
    network: ProbedNetwork,
    source: ImageSource,
    data: DataConfig,
    split: str,
    folder: Path,
    batch_size: int,
    world: World,
) -> np.ndarray:
    """Reads the features of the center crops of `source`, a split of `data`, from a file, which is written if needed.

    Returns memory-mapped records of `features` (dim,) float32 and `label`. They are computed in batches that do not
    depend on the number of ranks, and kept in a file of `folder` that only the same network on the same images finds
    again. All ranks call this.
    """
    # Everything that the features depend on names the file.
    facts = {
        **network.identity,
        "data": source.name,
        "split": split,
        "content": source.identity(),
        "version": source.version(),
        "image_size": network.image_size,
        "skip_broken": data.skip_broken,
        "batch_size": batch_size,
    }
    if isinstance(source, Relabeled):
        facts["class_names"] = source.class_names
    key = json_digest(facts)[:16]
    path = folder / f"features_{key}.npy"

    if world.any(not path.is_file()):
        name = f"features of {split}"
        _write_features(network, source, data.skip_broken, path, batch_size, name, world)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _write_features(
    network: ProbedNetwork,
    source: ImageSource,
    skip_broken: bool,
    path: Path,
    batch_size: int,
    name: str,
    world: World,
) -> None:
    """Each rank writes its batches into one temporary file, which then gets its name.

    The main rank draws the token of the file for all: another run may write the same features at the same time.
    """
    record = np.dtype([("features", np.float32, (network.dim,)), ("label", np.int64)])
    drawn = torch.tensor(secrets.randbits(31) if world.is_main else 0, device=world.device)
    token = str(int(world.sum(drawn)))
    with atomic_file(path, token) if world.is_main else nullcontext(temporary_path(path, token)) as temporary:
        if world.is_main:
            np.lib.format.open_memmap(temporary, mode="w+", dtype=record, shape=(len(source),)).flush()
        world.barrier()
        _write_batches(network, source, skip_broken, temporary, record, batch_size, name, world)
        world.barrier()
    world.barrier()  # no rank reads before the file has its name


def _write_batches(
    network: ProbedNetwork,
    source: ImageSource,
    skip_broken: bool,
    path: Path,
    record: np.dtype,
    batch_size: int,
    name: str,
    world: World,
) -> None:
    """Writes the batches of this rank into a file that is there."""
    batches = rank_batches(len(source), batch_size, world)
    with closing(RowFile(path)) as file:
        for ids in progress(batches, name, world):
            crops, labels = labeled_batch(source, network.image_size, ids.numpy(), skip_broken)
            rows = np.empty(len(ids), dtype=record)
            with numbered("image", ids):
                rows["features"] = network(crops).cpu().numpy()
            rows["label"] = labels.numpy()
            file.write(int(ids[0]), rows)
