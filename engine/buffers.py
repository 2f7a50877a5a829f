"""The buffers of networks before a step, to put them back where its update is skipped.

Forward passes change buffers on the way: statistics of batch norms, power iterations of spectral norms, windows of
recent codes and latents, codebooks that are averages. A step whose gradients are not finite has put NaN or infinity
there, which every later step would read. State that a forward pass changes therefore belongs into buffers.

Buffers that a module names in its attribute `replaced_buffers` are not copied: it never writes into such a tensor, but
puts a new one in its place, as windows do, so that the old one still has its values.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class BufferSnapshot:
    """The values of all buffers of `networks`, also of those that are in no state dict."""

    @torch.no_grad()
    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._values: list[tuple[nn.Module, str, Tensor | None]] = [
            (module, name, buffer if buffer is None or _is_replaced(module, name) else buffer.detach().clone())
            for network in networks
            for module in network.modules()
            for name, buffer in module._buffers.items()
        ]

        self._versions = [None if value is None else value._version for *_, value in self._values]

    @torch.no_grad()
    def restore(self) -> None:
        """Gives every buffer the value that it had, in place where it is still a tensor of that shape.

        Raises RuntimeError where a module wrote into a buffer that it promised to replace.
        """
        for (module, name, value), version in zip(self._values, self._versions, strict=True):
            if value is not None and value._version != version:
                raise RuntimeError(f"{type(module).__name__}.{name} is in replaced_buffers, but was written into")
        for module, name, value in self._values:
            present = module._buffers[name]
            is_copy = value is not None and not _is_replaced(module, name)
            if is_copy and present is not None and present.shape == value.shape:
                present.copy_(value)
            else:
                module._buffers[name] = value


def _is_replaced(module: nn.Module, name: str) -> bool:
    """Whether a module replaces this buffer, and never writes into it."""
    return name in getattr(module, "replaced_buffers", ())
