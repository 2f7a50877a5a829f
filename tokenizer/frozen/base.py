"""Frozen pretrained networks.

Every builder returns (network, stamp); the stamp says which weights it holds and travels into checkpoints and results.
Networks are frozen and stay in evaluation mode whatever happens around them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network without gradients of its own, always in evaluation mode. Not part of any checkpoint."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.network(*args, **kwargs)


def channels_last(images: Tensor) -> Tensor:
    """Memory layout in which convolutions with few channels are fastest."""
    return images.to(memory_format=torch.channels_last)
