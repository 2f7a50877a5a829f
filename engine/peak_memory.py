"""How much memory a computation without gradients holds at once, measured on tensors without storage.

with FakeTensorMode(), torch.no_grad(), PeakMemory() as peak:
    network(images)
peak.bytes
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.saved_tensors import storage_of


class PeakMemory(TorchDispatchMode):
    """Counts the results of all operations inside; `bytes` is the most that lived at a time.

    What was there before does not count, and what a kernel needs for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._held = 0
        self._users: dict[int, int] = {}  # storage -> living tensors that share it

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {storage_of(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._note(tensor, is_new=storage_of(tensor) not in before)
        return results

    def _note(self, tensor: Tensor, is_new: bool) -> None:
        """Counts a result until it dies. One that shares the storage of an input counts only if that was counted."""
        storage, size = storage_of(tensor), tensor.untyped_storage().nbytes()
        if storage in self._users:
            self._users[storage] += 1
        elif is_new:
            self._users[storage] = 1
            self._held += size
            self.bytes = max(self.bytes, self._held)
        else:
            return
        weakref.finalize(tensor, self._release, storage, size)

    def _release(self, storage: int, size: int) -> None:
        self._users[storage] -= 1
        if self._users[storage] == 0:
            del self._users[storage]
            self._held -= size
