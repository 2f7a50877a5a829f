"""Floating point operations of a training step, counted from the sizes of its networks.

A multiplication and an addition count as two. Matrix products, convolutions and attention are counted, as
`torch.utils.flop_counter` does; everything else, such as norms, activations and the optimizer, is bound by memory.
Causal attention counts in full. What activation checkpointing computes again does not count: these are the operations
of the model, not of the machine (the "model FLOPs" of PaLM, arXiv:2204.02311, appendix B).

Every network counts its own forward pass. What it costs in training follows from the gradients that are computed:

    FORWARD    none
    THROUGH    that of the input: frozen networks in the loss
    TRAINED    those of the input and the weights, which cost one forward pass each

Only encoders leave out the gradient of the image, which nobody needs; elsewhere it is below 0.1 % of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from engine.arithmetic import ceil_div

FORWARD, THROUGH, TRAINED = 1, 2, 3  # forward passes that a pass costs with its gradients


@dataclass(frozen=True)
class PartFlops:
    """What one part of a training step computes for one image, forward and backward."""

    name: str
    kind: Literal["matrix", "convolution"]  # most of its operations: matrix products (with attention), or convolutions
    flops: int
    full_precision: bool = False  # always in float32 without TF32, whatever the precision of the run
    recomputed: bool = False  # in blocks: activation checkpointing computes their forward pass again


@dataclass(frozen=True)
class ImageWork:
    """What a training step does for one image."""

    tokens: int  # of the image
    parts: tuple[PartFlops, ...] | None  # None: not all of its networks count their operations

    @property
    def flops(self) -> int | None:
        """The operations of all parts."""
        return None if self.parts is None else sum(part.flops for part in self.parts)


def linear_flops(layer: nn.Linear, rows: int) -> int:
    """A linear layer on `rows` vectors."""
    return 2 * rows * layer.in_features * layer.out_features


def conv_flops(layer: nn.Conv1d | nn.Conv2d, positions: int) -> int:
    """A convolution with `positions` positions in its output."""
    weights_per_output = (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)
    return 2 * positions * layer.out_channels * weights_per_output


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Products of queries and keys, and of weights and values; `width` counts the channels of all heads."""
    return 4 * queries * keys * width


def same_chain_flops(layers: Iterable[nn.Module], image_size: int) -> int:
    """Convolutions of a network whose layers follow each other, with padding that keeps ceil(side / stride) positions.

    `layers` are in the order of the computation; what is neither a convolution nor a pooling layer does not count.
    """
    total, side = 0, image_size
    for layer in layers:
        if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            continue
        stride = layer.stride if isinstance(layer.stride, int) else layer.stride[0]
        side = ceil_div(side, stride)
        if isinstance(layer, nn.Conv2d):
            total += conv_flops(layer, side * side)
    return total
