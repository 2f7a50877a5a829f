"""Finds operations for which a GPU would have to be waited for.

On a CPU they are counted as they are called, in the forward and in the backward pass. On a GPU torch itself raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that give the host a value, or a tensor whose shape depends on values.
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "unique_dim", "_unique2",
    "unique_consecutive", "is_nonzero", "item",
}  # fmt: skip


class HostReads(TorchDispatchMode):
    """Lists the operations of its context that read from the device, in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in READS or (name == "repeat_interleave" and isinstance(args[0], Tensor) and len(args) == 1):
            self.seen.append(name)
        if name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            self.seen += [f"{name} by a mask"] * len(masks)
        return function(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Fails where something inside reads from the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with HostReads() as reads:
        yield
    assert reads.seen == []
