"""The buffers of networks before a step, to put them back where its update is skipped.

Forward passes change buffers on the way: statistics of batch norms, power iterations of spectral norms, windows of
recent codes and latents, codebooks that are averages. A step whose gradients are not finite has put NaN or infinity
there, which every later step would read. State that a forward pass changes therefore belongs into buffers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class BufferSnapshot:
    """Copies of all buffers of `networks`, also of those that are in no state dict."""

    @torch.no_grad()
    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._copies: list[tuple[nn.Module, str, Tensor | None]] = [
            (module, name, None if buffer is None else buffer.detach().clone())
            for network in networks
            for module in network.modules()
            for name, buffer in module._buffers.items()
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Gives every buffer the value that it had, in place where it is still a tensor of that shape."""
        for module, name, value in self._copies:
            present = module._buffers[name]
            if value is not None and present is not None and present.shape == value.shape:
                present.copy_(value)
            else:
                module._buffers[name] = value
