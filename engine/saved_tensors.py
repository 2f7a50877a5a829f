"""What a forward pass saves for backward, and which module saves it: the base of meters of activation memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


def storage_of(tensor: Tensor) -> int:
    """The identity of the memory behind a tensor; a fake tensor has one too."""
    return tensor.untyped_storage()._cdata


class SavedTensorsMeter(ABC):
    """Sees what is saved for backward inside of a `with`, while its hooks follow the modules that are called.

    A meter holds every tensor that it counts, so that no storage is freed and its address given to another one.
    """

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._saving = torch.autograd.graph.saved_tensors_hooks(self._see, lambda tensor: tensor)

    @abstractmethod
    def follow_modules(self) -> Iterator[RemovableHandle]:
        """Registers hooks that tell where in the network the pass is, and yields them."""

    @abstractmethod
    def count(self, tensor: Tensor) -> None:
        """Takes note of a tensor that is saved now."""

    def _see(self, tensor: Tensor) -> Tensor:
        self.count(tensor)
        return tensor

    def __enter__(self) -> Self:
        self._hooks += self.follow_modules()
        self._saving.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._saving.__exit__(*exception)
        for hook in self._hooks:
            hook.remove()
