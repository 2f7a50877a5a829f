"""Batches that are read ahead, in the order in which they are asked for, by loader processes or in this one.

A loader process may end in three ways that a user must be able to understand: an error for the user (it is raised where
the batch is waited for, as it was), a decoder that kills its process (the image is named), and the end of the trainer.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from engine.devices import is_gpu
from engine.messages import UserError
from engine.stopping import leave_signals_to_parent

Batch = TypeVar("Batch")
Note = Callable[[int], None]  # notes the number of the image that is read now
ReadBatch = Callable[[range, Note], Batch]  # makes the batch of some numbers
Where = Callable[[int], str]  # index -> name of the image for messages

NOTHING = -1  # no image is being read
PREFETCHED_BATCHES = 4  # per loader process


class _Batches(Dataset, Generic[Batch]):
    """Batches by their numbers. A UserError is a value: a loader process would wrap it in its traceback.

    `reading` (num_workers,) is shared memory: the image that each loader process reads, for the case that it dies.
    """

    def __init__(self, read: ReadBatch, num_workers: int) -> None:
        self.read = read
        self.reading = torch.full((num_workers,), NOTHING).share_memory_()

    def __getitems__(self, numbers: range) -> Batch | UserError:
        worker = get_worker_info()

        def note(index: int) -> None:
            if worker is not None:
                self.reading[worker.id] = index

        try:
            return self.read(numbers, note)
        except UserError as error:
            return error
        finally:
            note(NOTHING)


def _unchanged(batch: Batch) -> Batch:
    """A batch comes whole from `_Batches`."""
    return batch


def _prepare_loader_process(worker: int) -> None:
    """One thread, and no signal but those of the trainer."""
    torch.set_num_threads(1)
    leave_signals_to_parent()


@contextmanager
def _loader_processes(reading: Tensor, where: Where) -> Iterator[None]:
    """Turns the death of a loader process into a UserError that names the image which it was reading."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        images = [where(index) for index in reading.tolist() if index != NOTHING]
        reason = " ".join(str(error).split())
        raise UserError(
            f"a loader process was killed ({reason[:200]}), perhaps by {' or '.join(images) or 'a lack of memory'}; "
            "remove the file, or free memory (data.num_workers)"
        ) from error


def _open_loader(loader: DataLoader) -> Iterator[Any]:
    """Starts the loader processes.

    PyTorch would raise their death wherever this process is at that moment; without its signal handler it is noticed
    where the next batch is waited for.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if is_main_thread:
        signal.signal(signal.SIGCHLD, handler)
    return batches


def batches_in_order(
    read: ReadBatch[Batch],
    requests: Iterator[range] | list[range],
    num_workers: int,
    device: torch.device,
    where: Where,
) -> Iterator[Batch]:
    """Yields `read(numbers, note)` for each of the requests, while loader processes read the next ones.

    `num_workers` is the number of those processes; with 0, a batch is read when it is asked for. Tensors lie in host
    memory, pinned where `device` is a GPU. `read` calls `note(index)` before it reads an image, which `where` names if
    a decoder kills the process. A UserError of `read` is raised here.
    """
    batches = _Batches(read, num_workers)
    loader = DataLoader(
        batches,
        batch_sampler=requests,
        collate_fn=_unchanged,
        num_workers=num_workers,
        pin_memory=is_gpu(device),
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        # What they read from are closures, which cannot be pickled: loader processes must be forks.
        multiprocessing_context="fork" if num_workers else None,
        worker_init_fn=_prepare_loader_process,
    )
    loaded = _open_loader(loader)
    while True:
        with _loader_processes(batches.reading, where):
            batch = next(loaded, None)
        if batch is None:
            return
        if isinstance(batch, UserError):
            raise batch
        yield batch
