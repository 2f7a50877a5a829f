"""The buffers of networks before a step, to put them back where its update is skipped.

Forward passes change buffers on the way: statistics of batch norms, power iterations of spectral norms, windows of
recent codes and latents, codebooks that are averages. A step whose gradients are not finite has put NaN or infinity
there, which every later step would read. State that a forward pass changes therefore belongs into buffers.

Whether a step is bad is known on the device alone. `BufferSnapshot.restore` therefore chooses there between the values
before and after, and the host does not wait for the answer.

Buffers that a module names in its attribute `replaced_buffers` are not copied: it never writes into such a tensor, but
puts a new one in its place, as windows do, so that the old one still has its values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """Where a module has a buffer, or could have one."""

    module: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor | None:
        """What is there now."""
        return self.module._buffers[self.name]

    @property
    def is_replaced(self) -> bool:
        """Whether the module replaces this buffer and never writes into it."""
        return self.name in getattr(self.module, "replaced_buffers", ())


def buffer_places(network: nn.Module) -> list[Place]:
    """The places of all buffers of a network, in its order; found once, they are looked at in every step."""
    return [Place(module, name) for module in network.modules() for name in module._buffers]


def _is_alike(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are tensors of the same kind."""
    return a is not None and b is not None and (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


class _Copies:
    """Copies of buffers of one dtype on one device, one behind the other: a single tensor costs a single kernel."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places
        self.originals = [place.tensor for place in places]
        self.values = torch.cat([tensor.detach().flatten() for tensor in self.originals])

    def shaped(self, values: Tensor) -> list[Tensor]:
        """Parts of a vector like `values` in the shapes of the buffers."""
        parts = values.split([tensor.numel() for tensor in self.originals])
        return [part.view(tensor.shape) for part, tensor in zip(parts, self.originals, strict=True)]


class BufferSnapshot:
    """The values of the buffers at `places`, also of those that are in no state dict."""

    @torch.no_grad()
    def __init__(self, places: Iterable[Place]) -> None:
        self._replaced: list[tuple[Place, Tensor | None, int]] = []  # with the version; and those that hold nothing
        kinds: dict[tuple[torch.dtype, torch.device], list[Place]] = defaultdict(list)
        for place in places:
            tensor = place.tensor
            if tensor is None or place.is_replaced:
                self._replaced.append((place, tensor, 0 if tensor is None else tensor._version))
            else:
                kinds[tensor.dtype, tensor.device].append(place)
        self._copies = [_Copies(alike) for alike in kinds.values()]

    @torch.no_grad()
    def restore(self, is_bad: Tensor) -> None:
        """Gives every buffer the value that it had, where `is_bad`, a scalar on the device, is true.

        Copied buffers are written in place. The host waits for `is_bad` only in a step in which a buffer became a
        tensor of another kind. Raises RuntimeError where a module wrote into a buffer that it promised to replace.
        """
        changed_kind: list[tuple[Place, Tensor | None]] = []

        # Replaced buffers: the tensor of before is still there.
        for place, before, version in self._replaced:
            if before is not None and before._version != version:
                module = type(place.module).__name__
                raise RuntimeError(f"{module}.{place.name} is in replaced_buffers, but was written into")
            if place.tensor is before:
                continue
            if _is_alike(place.tensor, before):
                place.module._buffers[place.name] = torch.where(is_bad, before, place.tensor)
            else:
                changed_kind.append((place, before))

        # Copied buffers: one choice for all of them.
        for copies in self._copies:
            present = [place.tensor for place in copies.places]
            if all(map(_is_alike, present, copies.originals)):
                chosen = torch.where(is_bad, copies.values, torch.cat([tensor.flatten() for tensor in present]))
                torch._foreach_copy_(present, copies.shaped(chosen))
            else:
                changed_kind += zip(copies.places, copies.shaped(copies.values), strict=True)

        if changed_kind and bool(is_bad):
            for place, before in changed_kind:
                if _is_alike(place.tensor, before):
                    place.tensor.copy_(before)
                else:
                    place.module._buffers[place.name] = before
