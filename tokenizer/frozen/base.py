"""What all frozen pretrained networks have in common.

Losses, teachers, discriminators and metrics see images through networks that somebody else trained. Each has a builder
in this package that returns (network, stamp). The stamp says which weights the network holds: "<file> sha256:<hash>",
"download" where its library fetched them, or "random" for a stand-in. It travels into checkpoints and results.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network whose parameters have no gradients, and which is always in evaluation mode.

    It is part of no checkpoint. Gradients with respect to its inputs pass through it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        """Does nothing: training mode of a module around it does not reach it."""
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.network(*args, **kwargs)


def channels_last(images: Tensor) -> Tensor:
    """`images` (B,C,H,W) in the memory layout in which convolutions with few channels are fastest."""
    return images.to(memory_format=torch.channels_last)
