"""A part of a trained network that can be exported: a module, its inputs and outputs, and what its result must be.

    encode    images -> indices                                    of a tokenizer
    decode    indices -> images                                    of a tokenizer
    step      label, token, position, cache -> logits, cache       of a generator, one step of sampling
    head      hidden states, indices -> logits                     of a generator whose tokens have several indices
    pass      label, tokens with masks -> logits                   of a masked generator, one pass of sampling

The size of the batch is free in an exported file, all other sizes are fixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

Tensors = tuple[Tensor, ...]
Run = Callable[..., Tensors]  # what calls an exported file: inputs -> outputs
Pairs = dict[str, tuple[Tensor, Tensor]]  # {output: (what it must be, what a file gave)}

BATCHES = (1, 2, 5, 8)  # sizes of the batches that a file is compared on


@dataclass(frozen=True)
class Port:
    """An input or output of an exported part."""

    name: str
    meaning: str
    batch_dim: int | None = 0  # which of its dimensions is the batch; None: it has none


@dataclass(frozen=True)
class CodeComparison:
    """Codes that a file chose: which differ from the network's, and how much farther they are from the latent."""

    differs: Tensor  # (B,N) bool
    gaps: Tensor  # (B,N): distance to the file's code, minus distance to the network's (`Quantizer.choice_distances`)


@dataclass(frozen=True)
class Comparison:
    """What an exported file gave for one batch, beside what it must give."""

    rows: int  # size of the batch
    values: Pairs  # real numbers, beside those of the network
    codes: CodeComparison | None = None
    oracle: Pairs | None = None  # real numbers, beside those of another way to compute them, with other rounding


def random_codes(sizes: Sequence[int], rows: int, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Codes with equal probability, int64 (rows,N), or (rows,N,k) for k > 1 `sizes`: codes of each index of a token."""
    columns = [torch.randint(size, (rows, num_tokens), generator=generator) for size in sizes]
    return torch.stack(columns, dim=-1) if len(columns) > 1 else columns[0]


class Part(ABC):
    """A part of a network. Its name is the value of `--part`."""

    name: ClassVar[str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    module: nn.Module  # what is exported: tensors in, tensors out

    @abstractmethod
    def example(self, rows: int) -> Tensors:
        """Inputs for a batch of `rows`, to trace the module with."""

    @abstractmethod
    def compare(self, run: Run) -> Iterator[Comparison]:
        """Runs an exported file on batches of several sizes. Their inputs are the same in every call."""
