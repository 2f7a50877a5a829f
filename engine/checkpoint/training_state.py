"""The training state of a checkpoint, in the format of torch.distributed.checkpoint: one file per process.

Torch's part takes half a second to import. `engine.checkpoint.store` and `evaluations.fingerprint` therefore import
this module where a state is written or read: `--help` and `--dry-run` do not wait for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

FAILURES = (Exception, CheckpointException)  # torch derives its own from BaseException


def save_state(state: dict[str, Any], folder: Path, group: Any, *, is_alone: bool) -> None:
    """Writes the part of this process; all processes of `group` call it together. Raises one of FAILURES."""
    with _quiet():
        dcp.save(state, checkpoint_id=str(folder), process_group=group, no_dist=is_alone)


def load_state(parts: dict[str, Any], folder: Path, *, is_alone: bool) -> None:
    """Restores what `save_state` wrote into `parts`, which are `Stateful` objects. Raises one of FAILURES."""
    with _quiet():
        dcp.load(parts, checkpoint_id=str(folder), no_dist=is_alone)


def read_state(folder: Path) -> dict[str, Any]:
    """Reads a whole state as {dotted name: tensor or value}; any number of processes may have written it.

    Raises one of FAILURES.
    """
    # An empty tensor per saved one, for the loader to fill; other values are put in place by name.
    state: dict[str, Any] = {}
    for name, entry in dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata.items():
        is_tensor = isinstance(entry, TensorStorageMetadata)
        state[name] = torch.empty(entry.size, dtype=entry.properties.dtype) if is_tensor else None

    load_state(state, folder, is_alone=True)
    return state


def cause_of(error: BaseException) -> BaseException:
    """The error of the first rank that failed, without the traceback that torch writes into its message."""
    if isinstance(error, CheckpointException):
        first_rank = next(iter(error.failures))
        return error.failures[first_rank][0]
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's remark that a single process saves as a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
