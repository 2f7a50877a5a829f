"""Networks without storage: their shapes and names, on the meta device, without memory, numbers or random draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def without_storage() -> Iterator[None]:
    """Builds, and calls, networks on the meta device.

        with without_storage():
            network = build_tokenizer(config.model, image_size)

    It is `torch.device("meta")`, in a quarter of the time: what only fills or scales a tensor is left out, because
    torch imports its compiler for the shapes of some of these operations, which takes a second.
    """
    with torch.device("meta"), _NoNumbers():
        yield


def _same(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    """What an operation returns that changes numbers only."""
    return tensor


def _empty(*sizes: Any, generator: torch.Generator | None = None, **options: Any) -> Tensor:
    """What a draw returns, without the draw."""
    return torch.empty(*sizes, **options)


def _product(tensor: Tensor, other: Any) -> Tensor:
    """A product; of floating-point numbers with one number, the tensor itself."""
    changes_numbers_only = isinstance(other, float) and tensor.is_floating_point()
    return tensor if changes_numbers_only else tensor * other


_SHORT_CUTS: Mapping[Callable, Callable] = {
    torch.randn: _empty,
    nn.init.normal_: _same,
    Tensor.normal_: _same,
    Tensor.mul: _product,
    F.normalize: _same,
}


class _NoNumbers(TorchFunctionMode):
    """Replaces operations by short cuts of the same shape."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _SHORT_CUTS.get(function, function)(*args, **(kwargs or {}))
