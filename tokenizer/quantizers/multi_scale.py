"""Multi-scale residual quantization of VAR (arXiv:2404.02905, algorithms 1 and 2, and the released code).

A map f of latents is approximated by a sum of codes, from the coarsest scale to the finest. With the rest r_0 = f, for
scale k of K, which has s_k x s_k cells (the last one as many as f):

    indices    nearest codes (squared distance) of area(r_{k-1}, s_k); the last scale takes the rest itself
    detail     e = bicubic(codes of the indices, size of f); h_k = e / 2 + phi(e) / 2, phi a 3x3 convolution
    sums       f_k = f_{k-1} + h_k, r_k = r_{k-1} - h_k; the result is f_K

All scales share one codebook. There are `num_phis` convolutions; scale k has the one whose tick lies nearest to
(k-1) / (K-1), with ticks evenly spread (`phi_numbers`).

The released code begins with small random codes, and does nothing about codes that nobody uses. With `restart` they
start anew at rests, which may be of any scale (codebook_updates.py).

Shapes    z, z_q (B,h*h,D), row by row, h = s_K      indices (B, sum of s_k^2), scale by scale, each row by row
          maps (B,D,h,h)
Losses    codebook: mean over scales of mean |f_k - sg f|^2      commitment: mean over scales of mean |sg f_k - f|^2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.devices import full_precision
from engine.flops import TRAINED, conv_flops
from engine.validation import Problem, Section, at_least
from tokenizer.quantizers.base import Quantized
from tokenizer.quantizers.followed_codebook import FollowedCodebook, restart_problems
from tokenizer.quantizers.gradients import straight_through
from tokenizer.quantizers.grid_resampling import enlarge, shrink


@dataclass(kw_only=True, slots=True)
class MultiScaleConfig(Section):
    """One codebook for all scales. The default scales give 680 codes for a grid of 16 x 16 cells."""

    scales: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16])  # cells per side, rising
    codebook_size: int = 4096
    codebook_dim: int = 32
    num_phis: int = 4  # convolutions that scales share; 1: all scales have the same
    restart: Literal["none", "random", "nearest"] = "none"  # unused codes: become random rests, or the nearest (CVQ)
    restart_threshold: float = 0.1  # of the mean use of a code: with `random`, codes below this start anew
    decay: float = 0.99  # per update, of the use of codes that `restart` reads

    def problems(self) -> Iterator[Problem]:
        rising = all(coarse < fine for coarse, fine in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or self.scales[0] < 1 or not rising:
            yield Problem("scales", self.scales, "one or more rising numbers, each 1 or more")
        yield from at_least(self, "codebook_size", 2)
        yield from at_least(self, "codebook_dim", 1)
        yield from at_least(self, "num_phis", 1)
        yield from restart_problems(self)


class MultiScaleVQ(FollowedCodebook):
    """See the module docstring. A generator of scales reads `next_inputs`, `with_scale` and `input_of`."""

    config_class = MultiScaleConfig
    in_words = "nearest of learned code vectors, from coarse to fine scales"
    loss_names = frozenset({"codebook", "commitment"})

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__((config.codebook_size,), config.codebook_dim)
        self.config = config
        self.scales = list(config.scales)
        self.grid_side = self.scales[-1]
        self.phi_of_scale = phi_numbers(len(self.scales), config.num_phis)

        bound = 1 / config.codebook_size
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.codebook_dim).uniform_(-bound, bound))
        convolutions = (nn.Conv2d(self.codebook_dim, self.codebook_dim, 3, padding=1) for _ in range(config.num_phis))
        self.phis = nn.ModuleList(convolutions)
        self._prepare_updates()

    def num_indices(self, num_latents: int) -> int:
        """That of the only grid that it takes."""
        return sum(side**2 for side in self.scales)

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        """See `Quantizer.forward`. Raises ValueError for latents of another grid."""
        assert not entropy, "multi-scale quantization has no entropy loss"
        with full_precision(z.device):
            # The codes of all scales, and what they add up to.
            z = z.float()
            target = self._as_map(z)
            chosen, sums, rests = self._approximate(target)
            indices = torch.cat(chosen, dim=1)
            if self.training:
                self.remember(indices)
                if quantize and self._is_followed:
                    self._follow(torch.cat(rests, dim=1).flatten(0, 1), indices)

            # Warm-up: the latents themselves. The zero keeps all parameters in the graph of data-parallel training.
            if not quantize:
                zero = 0.0 * sum(parameter.sum() for parameter in self.parameters())
                return Quantized(z + zero, indices)

            losses = {
                "codebook": self._mean_error(sums, target.detach()),
                "commitment": self._mean_error([total.detach() for total in sums], target),
            }
            return Quantized(straight_through(z, _as_tokens(sums[-1])), indices, losses)

    def _approximate(self, target: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each scale: the indices (B,s*s), the sum up to it (B,D,h,h), and the rest that it saw (B,s*s,D)."""
        codes = self.codebook.float()
        rest = target.detach()
        total = torch.zeros_like(rest)
        chosen, sums, rests = [], [], []
        for number, side in enumerate(self.scales):
            seen = _as_tokens(rest if side == self.grid_side else shrink(rest, side))
            indices = self.nearest(seen.flatten(0, 1), codes).view(seen.shape[:2])
            detail = self._detail(indices, number)
            total = total + detail
            rest = rest - detail.detach()

            chosen.append(indices)
            sums.append(total)
            rests.append(seen)
        return chosen, sums, rests

    def _detail(self, indices: Tensor, number: int) -> Tensor:
        """What scale `number` adds: indices (B,s*s) -> (B,D,h,h)."""
        side = self.scales[number]
        coarse = F.embedding(indices, self.codebook.float()).mT.unflatten(2, (side, side))
        detail = coarse if side == self.grid_side else enlarge(coarse, self.grid_side)
        return (detail + self.phis[self.phi_of_scale[number]](detail)) / 2

    @staticmethod
    def _mean_error(sums: Sequence[Tensor], target: Tensor) -> Tensor:
        """The mean over scales of the mean squared error."""
        return sum((total - target).square().mean() for total in sums) / len(sums)

    # ------------------------------------------------------------------------------------------------ from indices
    def sums_of(self, indices: Tensor) -> list[Tensor]:
        """The sums f_1 .. f_K (B,D,h,h), for indices (B,T) of the first scales, or of all.

        Raises ValueError where T is not the number of cells of some first scales.
        """
        sizes = [side**2 for side in self.scales]
        fitting = [number for number, end in enumerate(accumulate(sizes), start=1) if end == indices.shape[1]]
        if not fitting:
            raise ValueError(f"{indices.shape[1]} indices are not those of the first of the scales {self.scales}")

        total = torch.zeros((), device=indices.device)
        sums = []
        for number, part in enumerate(indices.long().split(sizes[: fitting[0]], dim=1)):
            total = total + self._detail(part, number)
            sums.append(total)
        return sums

    def with_scale(self, total: Tensor | None, indices: Tensor, number: int) -> Tensor:
        """The sum up to scale `number` (B,D,h,h), counted from 0: the sum before it, None at 0, and its codes."""
        with full_precision(indices.device):
            detail = self._detail(indices, number)
            return detail if total is None else total + detail

    def input_of(self, total: Tensor, number: int) -> Tensor:
        """What a generator sees at scale `number`, from 1, of the sum before it: (B,D,h,h) -> (B,s*s,D)."""
        side = self.scales[number]
        with full_precision(total.device):
            return _as_tokens(total if side == self.grid_side else shrink(total, side))

    def decode_indices(self, indices: Tensor) -> Tensor:
        with full_precision(indices.device):
            return _as_tokens(self.sums_of(indices)[-1])

    def next_inputs(self, indices: Tensor) -> Tensor:
        """What a generator sees of the scales before, at the places of scales 2..K: indices of all scales (B,T) ->
        area(f_{k-1}, s_k), one scale after the other, (B, T - s_1^2, D).
        """
        with full_precision(indices.device):
            sums = self.sums_of(indices)
            pairs = zip(sums, self.scales[1:], strict=False)
            seen = [_as_tokens(total if side == self.grid_side else shrink(total, side)) for total, side in pairs]
            return torch.cat(seen, dim=1) if seen else sums[0].new_zeros(len(indices), 0, self.codebook_dim)

    def code_vectors(self, indices: Tensor) -> Tensor:
        return F.embedding(indices.long(), self.codebook.float())

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        """Squared distances (B,T) of codes from the rests that `forward` itself leaves at their scales.

        Of a choice that follows another one, and was made for another rest, this says little.
        """
        with full_precision(z.device):
            return (self.rests_of(z) - self.code_vectors(indices)).square().sum(-1)

    def rests_of(self, z: Tensor) -> Tensor:
        """What the codes of each scale are chosen for: latents (B,h*h,D) -> (B,T,D), in the order of the indices."""
        with full_precision(z.device):
            _, _, rests = self._approximate(self._as_map(z.float()))
            return torch.cat(rests, dim=1)

    # ------------------------------------------------------------------------------------------------ what others ask
    def training_flops(self, num_latents: int, entropy: bool) -> int:
        """A table of products with all codes, one more for the nearest rest of each code, and the convolution of each
        scale, which is trained.
        """
        tables = 2 * self.num_indices(num_latents) * self.codebook_size * self.codebook_dim
        tables *= 1 + (self.config.restart == "nearest")
        convolutions = sum(conv_flops(self.phis[number], num_latents) for number in self.phi_of_scale)
        return tables + TRAINED * convolutions

    def _as_map(self, z: Tensor) -> Tensor:
        """Latents (B,h*h,D) -> (B,D,h,h). Raises ValueError for another number of them."""
        if z.shape[1] != self.grid_side**2:
            raise ValueError(f"{z.shape[1]} latents are no grid of {self.grid_side} x {self.grid_side}")
        return z.mT.unflatten(2, (self.grid_side, self.grid_side))


def _as_tokens(maps: Tensor) -> Tensor:
    """Maps (B,D,s,s) -> (B,s*s,D), row by row."""
    return maps.flatten(2).mT


def phi_numbers(num_scales: int, num_phis: int) -> list[int]:
    """Which of the convolutions each scale has.

    With 4 convolutions, ticks are 1/3 of 1/4 from both ends; with others, half of their distance. Float64 decides where
    a scale lies between two ticks, as in the released code.
    """
    margin = 1 / 3 / num_phis if num_phis == 4 else 1 / 2 / num_phis
    ticks = np.linspace(margin, 1 - margin, num_phis)
    places = np.arange(num_scales) / max(num_scales - 1, 1)
    return [int(np.argmin(np.abs(ticks - place))) for place in places]
