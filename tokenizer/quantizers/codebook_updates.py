"""Codebooks that follow the latents by averages, and codes that nobody uses and that start anew.

All rules are those of one update of the whole training: n_k and m_k are the number and the sum of the latents with code
k, over all ranks and all micro-batches. Of T latents and K codes:

    average    N <- g N + (1 - g) n    M <- g M + (1 - g) m    e = M / N'    N' = (N + eps) / (sum N + K eps) sum N
               VQ-VAE (arXiv:1711.00937, appendix A.1), from N = 1 and M = e. A code with N < eps stays where it is.
    random     a code with N_k < s T / K, which is s times the mean, becomes a random latent of this update, each latent
               at most once if there are enough; then N_k = s T / K and M_k = N_k e_k (the rule of
               vector-quantize-pytorch with threshold s T / K). A codebook with gradients has no N: p_k < s / K counts.
    nearest    p <- g p + (1 - g) n / T    a_k = exp(-10 K p_k / (1 - g) - 0.001)    e_k <- (1 - a_k) e_k + a_k z_k
               CVQ (arXiv:2307.15139), from p = 0; z_k is the latent of this update that is nearest to code k. A code of
               average use is left alone, one that nobody uses moves 99.9 % of the way. Nothing is random.

Sums are taken in float64, so that neither the number of ranks nor that of micro-batches is seen in a codebook, up to
the last bit of float32. Random latents are chosen by their place in the global batch, from (seed, step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.seeds import counter_rng
from engine.world import gather_rows, rank_and_size, sum_over_ranks

SIZE_EPS = 1e-5  # added to the number of latents of a code before a division
RESTART_KEY = 0xDEAD  # keeps these random numbers apart from those of other users of the seed
MAX_PENDING = 4096  # micro-batches between two updates


@dataclass
class Followed:
    """The latents (n,D) of this rank in one update, their codes (n,), and how many micro-batches they come from."""

    latents: Tensor
    indices: Tensor
    num_parts: int

    @classmethod
    def of_parts(cls, parts: list[tuple[Tensor, Tensor]]) -> Followed:
        """Joins the latents and codes of each micro-batch."""
        latents, indices = zip(*parts, strict=True)
        return cls(torch.cat(latents), torch.cat(indices), len(parts))

    def statistics(self, num_codes: int) -> tuple[Tensor, Tensor]:
        """The counts (K,) and sums (K,D) of all ranks, float64."""
        ones = self.latents.new_ones(len(self.latents), 1)
        rows = torch.cat([ones, self.latents], dim=1).double()
        totals = rows.new_zeros(num_codes, rows.shape[1]).index_add_(0, self.indices, rows)
        totals = sum_over_ranks(totals)
        return totals[:, 0], totals[:, 1:]

    def nearest(self, codes: Tensor, nearest_rows: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The latent of all ranks nearest to each code: (K,D) -> (K,D). `nearest_rows(a, b)` finds it among rows b."""
        latents = self.latents[nearest_rows(codes, self.latents)]
        rank, size = rank_and_size()
        if size == 1:
            return latents

        # The first of the ranks with the smallest distance gives its latent, the others zeros.
        distances = (codes - latents).square().sum(1)
        nearest_rank = gather_rows(distances[None]).argmin(0)
        return sum_over_ranks(torch.where(nearest_rank[:, None] == rank, latents, 0.0))

    def drawn(self, count: int, seed: int, step: int) -> Tensor:
        """`count` random latents of all ranks (count,D), each at most once if there are enough."""
        # Places in the global batch, whose order is that of micro-batches, then ranks, then rows.
        rank, size = rank_and_size()
        total = size * len(self.latents)
        rng = counter_rng(seed, RESTART_KEY, step)
        if total >= count:
            places = rng.choice(total, count, replace=False)
        else:
            places = np.resize(rng.permutation(total), count)

        # Each rank gives the latents that it has, and zeros for the others.
        rows_per_part = len(self.latents) // self.num_parts
        part, place = np.divmod(places, size * rows_per_part)
        of_rank, row = np.divmod(place, rows_per_part)
        device = self.latents.device
        is_here = torch.from_numpy(of_rank == rank).to(device, non_blocking=True)
        rows = torch.from_numpy(part * rows_per_part + row).to(device, non_blocking=True)
        return sum_over_ranks(torch.where(is_here[:, None], self.latents[rows], 0.0))


@dataclass
class CodebookState:
    """A codebook and its statistics in the middle of an update; None is what its rules do not keep."""

    codes: Tensor  # (K,D) e
    cluster_size: Tensor | None  # (K,) N
    cluster_sum: Tensor | None  # (K,D) M
    usage_ema: Tensor | None  # (K,) p
    is_restarted: Tensor  # (K,) bool, in this update

    def average(self, counts: Tensor, sums: Tensor, decay: float, normalize: Callable[[Tensor], Tensor]) -> None:
        """The codes become the averages of their latents; `normalize` gives codes their length."""
        self.cluster_size = decay * self.cluster_size + (1 - decay) * counts.float()
        self.cluster_sum = decay * self.cluster_sum + (1 - decay) * sums.float()
        means = normalize(self.cluster_sum / self._smoothed_size[:, None])
        self.codes = torch.where(self.cluster_size[:, None] < SIZE_EPS, self.codes, means)

    @property
    def _smoothed_size(self) -> Tensor:
        """N' (K,)."""
        total = self.cluster_size.sum()
        return (self.cluster_size + SIZE_EPS) / (total + len(self.codes) * SIZE_EPS) * total

    def note_usage(self, counts: Tensor, decay: float) -> None:
        """The average share of the latents that each code gets."""
        self.usage_ema = decay * self.usage_ema + (1 - decay) * (counts / counts.sum()).float()

    def restart_at(self, drawn: Tensor, counts: Tensor, threshold: float) -> None:
        """Codes used less than `threshold` times the mean become the `drawn` latents (K,D), one after another."""
        if self.cluster_size is not None:
            least = (threshold * counts.sum() / len(counts)).float()
            self.is_restarted = self.cluster_size < least
        else:
            self.is_restarted = self.usage_ema < threshold / len(counts)
        number = (self.is_restarted.cumsum(0) - 1).clamp_min(0)
        rows = self.is_restarted[:, None]
        self.codes = torch.where(rows, drawn[number], self.codes)

        # A code begins with the least use that lets it stay.
        if self.cluster_size is not None:
            self.cluster_size = torch.where(self.is_restarted, least, self.cluster_size)
            self.cluster_sum = torch.where(rows, least * self.codes, self.cluster_sum)
        else:
            self.usage_ema = self.usage_ema.masked_fill(self.is_restarted, threshold / len(counts))

    def approach(self, nearest: Tensor, decay: float) -> None:
        """Codes move to the `nearest` latents (K,D), the further the less they are used."""
        share = torch.exp(-10 * len(self.codes) * self.usage_ema / (1 - decay) - 1e-3)
        self.is_restarted = share > 0.5
        self.codes = self.codes + share[:, None] * (nearest - self.codes)
        if self.cluster_sum is not None:
            target = self._smoothed_size[:, None] * nearest
            self.cluster_sum = self.cluster_sum + share[:, None] * (target - self.cluster_sum)
