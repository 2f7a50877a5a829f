"""A GPU that is not there: tensors on `cuda` that have a shape and a device but no storage, and refuse to mix devices.

    with fake_gpu():
        network.to(CUDA)(torch.zeros(2, 3, 16, 16, device=CUDA))

Under torch's FakeTensorMode an operation on tensors of two devices raises, as it would on a GPU. Kernels do not run:
numbers that the host asks for are constants, and a backward pass only puts gradients where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import numpy as np
import torch
import torch._dynamo  # here, so that tests in processes of their own need not import it each
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from autoregressive.models import rope
from engine.world import World

CUDA = torch.device("cuda", 0)
GPU_WORLD = World(0, 1, 0, CUDA)
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
NUMPY_TYPES = {
    torch.uint8: np.uint8, torch.int64: np.int64, torch.bool: np.bool_, torch.float32: np.float32,
    torch.float64: np.float64,
}  # fmt: skip


class HostReads(TorchDispatchMode):
    """Gives the host numbers for tensors that have none, and shapes for results whose shape depends on numbers.

    A number is 1, a flag is true, and so is a mask everywhere; of different rows or codes there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0  # numbers that the host has asked for

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is aten._fused_sgd_.default:  # of the averages; torch has no kernel for it that does nothing
            devices = {tensor.device for tensor in (*args[0], *args[1], kwargs["found_inf"])}
            assert len(devices) == 1, devices
            return None
        if not args or not isinstance(args[0], FakeTensor):
            return _of_real(function, args, kwargs)
        if function in READING:
            self.count += 1
        if function in INDEXING:
            _check_index_devices(args[0], args[1])
        return PRETENDED.get(function, function)(*args, **kwargs)


def _number(tensor: Tensor) -> bool | int | float:
    """A number for the host."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


def _index(tensor: Tensor, indices: list[Tensor | None]) -> Tensor:
    """Indexing, where masks are true everywhere."""
    return aten.index.Tensor(tensor, [row for index in indices for row in _rows_of(index)])


def _nonzero(tensor: Tensor) -> Tensor:
    """All places."""
    return tensor.new_zeros(tensor.numel(), tensor.ndim, dtype=torch.long)


def _bincount(tensor: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """As many counts as are asked for."""
    return tensor.new_zeros(max(1, minlength), dtype=torch.long)


def _unique(rows: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
    """One of the rows."""
    place = rows.new_zeros(1, dtype=torch.long)
    return rows[:1], place, place


READING = (aten._local_scalar_dense.default, aten.item.default)
PRETENDED = {
    **dict.fromkeys(READING, _number),
    aten.equal.default: lambda one, other: True,
    aten.index.Tensor: _index,
    aten.nonzero.default: _nonzero,
    aten.bincount.default: _bincount,
    aten.unique_dim.default: _unique,
    aten._unique2.default: lambda tensor, *options: _unique(tensor.flatten()),
}


def _of_real(function: Callable, args: tuple, kwargs: dict) -> object:
    """An operation on tensors that have numbers: those that the host asks for are the real ones."""
    if function in READING:
        with unset_fake_temporarily():
            return function(*args, **kwargs)
    return function(*args, **kwargs)


def _check_index_devices(tensor: Tensor, indices: list[Tensor | None]) -> None:
    """The rule of indexing, which fake tensors do not know: indices are on the CPU, or where the tensor is."""
    for index in indices:
        if index is not None and index.device.type != "cpu" and index.device != tensor.device:
            raise RuntimeError(f"an index on device {index.device} into a tensor on device {tensor.device}")


def _rows_of(index: Tensor | None) -> list[Tensor | None]:
    """The indices that stand for one index: a mask is true everywhere."""
    is_mask = index is not None and index.dtype == torch.bool
    return [index.new_zeros(index.numel(), dtype=torch.long)] * index.ndim if is_mask else [index]


def _backward(tensor: Tensor, *args, **kwargs) -> None:
    """In place of a backward pass: every leaf of the graph gets a gradient of its shape, on its device."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        waiting += [before for before, _ in node.next_functions]


def _numpy(tensor: Tensor, **options: object) -> np.ndarray:
    """In place of `Tensor.numpy`: zeros, for a tensor of the CPU."""
    assert tensor.device.type == "cpu", "a tensor of a GPU has no array"
    return np.zeros(tuple(tensor.shape), NUMPY_TYPES[tensor.dtype])


def _deepcopy(tensor: Tensor, memo: dict[int, Tensor]) -> Tensor:
    """In place of `Tensor.__deepcopy__`, which copies storages."""
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    return memo[id(tensor)]


class _Event:
    """In place of a mark among the kernels of a GPU: no time passes between two of them."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        self.is_recorded = True

    def synchronize(self) -> None:
        assert self.is_recorded

    def elapsed_time(self, later: _Event) -> float:
        assert self.is_recorded and later.is_recorded
        return 0.0


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """In place of `nn.Module._apply`, which swaps tensors in place: new parameters and buffers."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    return module


@contextmanager
def fake_gpu() -> Iterator[HostReads]:
    """The mode. What was made before, on the CPU, is used as a tensor of the CPU."""
    rope.rope2d_table.cache_clear()  # tables that are kept for later are fake ones here
    with (
        mock.patch.object(rope, "unset_fake_temporarily", nullcontext),
        mock.patch.object(torch.cuda, "synchronize"),
        mock.patch.object(torch.cuda, "Event", _Event),
        mock.patch.object(nn.init, "trunc_normal_", lambda tensor, *_, **__: tensor),  # it looks at its numbers
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(Tensor, "backward", _backward),
        mock.patch.object(Tensor, "numpy", _numpy),
        mock.patch.object(FakeTensor, "__deepcopy__", _deepcopy, create=True),
        mock.patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", -1),  # numbers that torch keeps it computes with
        FakeTensorMode(allow_non_fake_inputs=True),
        HostReads() as reads,
    ):
        yield reads
    rope.rope2d_table.cache_clear()


def require_on(device: torch.device, *values: object) -> None:
    """Asserts that all tensors in nested containers and dataclasses are on `device`."""
    for value in values:
        if isinstance(value, Tensor):
            assert value.device == device, f"a tensor {tuple(value.shape)} is on {value.device}"
        elif isinstance(value, dict):
            require_on(device, *value.values())
        elif isinstance(value, list | tuple):
            require_on(device, *value)
        elif hasattr(value, "__dataclass_fields__"):
            require_on(device, *(getattr(value, name) for name in value.__dataclass_fields__))
