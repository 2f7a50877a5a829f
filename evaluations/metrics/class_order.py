"""Whether images are sorted by class: the Inception Score over chunks of consecutive images is then far too low.

A chunk of sorted samples holds a few classes out of all, and the score cannot exceed the number of classes in a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SORTED_EXCESS = 0.2  # of equal neighbors beyond chance; random order is near 0, sorted images have almost 1


@dataclass(frozen=True)
class ClassOrder:
    """How often consecutive images are of one class."""

    share: float  # of all pairs of consecutive images
    expected: float  # the same in random order

    @classmethod
    def of(cls, classes: Tensor) -> ClassOrder:
        """Of the classes (n,) of images in their order, two or more."""
        count = len(classes)
        sizes = torch.unique(classes, return_counts=True)[1].double()
        expected = (sizes * (sizes - 1)).sum().item() / (count * (count - 1))
        return cls((classes[1:] == classes[:-1]).double().mean().item(), expected)

    @property
    def is_sorted(self) -> bool:
        """Whether there are more equal neighbors than random order has; images of a single class have no order."""
        return self.share - self.expected > SORTED_EXCESS * (1 - self.expected)


def order_problem(classes: Tensor, chunk: int, kind: str) -> str | None:
    """What to say of a score over chunks of `chunk` images of these classes (n,); None where nothing is wrong.

    `kind` says whose classes these are. In one chunk, the order has no effect.
    """
    if len(classes) <= max(chunk, 1):
        return None
    order = ClassOrder.of(classes)
    if not order.is_sorted:
        return None
    return (
        f"sorted by class: {order.share:.1%} of consecutive images have the same {kind}, {order.expected:.1%} in "
        f"random order; inception_score, which is the mean over chunks of {chunk:,} images in this order, is too "
        "low, and inception_score_all is not"
    )
