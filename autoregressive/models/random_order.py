"""Random orders of prediction (RAR, arXiv:2411.00776): which order a sample is trained in, and how tensors follow it.

An order (N,) is a permutation of the cells of a grid: place p of the output chain predicts the token of cell order[p].
Early in training every sample has a random order, at the end all have the raster order 0, 1, ..., N-1.

Shapes    order (B,N) int64, or (N,) where all rows have the same      tokens and hidden states (B,N,...)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.messages import UserError
from engine.validation import Problem, Section, in_range


@dataclass(kw_only=True, slots=True)
class OrderConfig(Section):
    """In which order tokens are predicted in training. The default is raster, without random orders."""

    random_start: float = 0.0  # fraction of the run up to which every sample has a random order
    random_end: float = 0.0  # fraction of the run from which on all are raster; linear between; 0 = always raster

    def problems(self) -> Iterator[Problem]:
        yield from in_range(self, "random_start", 0, 1)
        yield from in_range(self, "random_end", 0, 1)
        if self.random_end < self.random_start:
            yield Problem("random_end", self.random_end, f"at least random_start={self.random_start}")

    @property
    def is_random(self) -> bool:
        """Whether any step of a run has random orders."""
        return self.random_end > 0

    def share(self, progress: float) -> float:
        """The probability of a random order at `progress`, the finished fraction of a run."""
        if progress >= self.random_end:
            return 0.0
        if progress <= self.random_start:
            return 1.0
        return 1.0 - (progress - self.random_start) / (self.random_end - self.random_start)


def draw_order(num_tokens: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """A uniform order of the cells (N,), and the number in [0, 1) that decides whether its sample takes it."""
    order = rng.permutation(num_tokens)
    return {
        "order": torch.from_numpy(order.astype(np.int64)),
        "order_chance": torch.tensor(rng.random(), dtype=torch.float64),
    }


def takes_random(chances: Tensor, share: float) -> Tensor:
    """Which samples (B,) have a random order."""
    return chances < share


def mixed_orders(orders: Tensor, is_random: Tensor) -> Tensor:
    """The random order of some samples, and raster for the others: (B,N)."""
    raster = torch.arange(orders.shape[1], device=orders.device)
    return torch.where(is_random[:, None], orders, raster)


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """Values (B,N,...) of the cells in raster -> in the order of prediction; `order` is (B,N)."""
    index = order.reshape(*order.shape, *(1 for _ in values.shape[2:]))
    return values.gather(1, index.expand_as(values))


def in_raster(values: Tensor, order: Tensor) -> Tensor:
    """The inverse of `in_order`."""
    return in_order(values, order.argsort(1))


def input_rows(order: Tensor) -> Tensor:
    """The row of a table of positions for each input of the chain: 0 for the class, then 1 + the cell of each token.

    order (...,N) -> (...,N): the last token is no input.
    """
    return torch.cat([torch.zeros_like(order[..., :1]), order[..., :-1] + 1], dim=-1)


def require_order(order: Tensor, num_tokens: int) -> None:
    """Raises UserError for anything but a permutation (N,) of the cells."""
    is_permutation = order.ndim == 1 and torch.equal(
        order.sort().values.cpu(), torch.arange(num_tokens, dtype=order.dtype)
    )
    if not is_permutation:
        raise UserError(f"order must hold each of the cells 0..{num_tokens - 1} once, in the order of decoding")
