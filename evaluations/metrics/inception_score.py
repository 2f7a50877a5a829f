"""Inception Score (Salimans et al., arXiv:1606.03498), streamed."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.world import World

SCORE_CHUNK = 5000  # consecutive images of one Inception Score


class InceptionScore:
    """Class probabilities summed over chunks of consecutive image numbers. `count` images in all."""

    def __init__(self, count: int, num_classes: int) -> None:
        chunks = -(-count // SCORE_CHUNK)
        self.sums = torch.zeros(chunks, num_classes, dtype=torch.float64)
        self.negative_entropies = torch.zeros(chunks, dtype=torch.float64)
        self.counts = torch.zeros(chunks, dtype=torch.float64)

    def update(self, ids: Tensor, logits: Tensor) -> None:
        """Image numbers (B,) and their logits (B,num_classes)."""
        log_p = logits.double().cpu().log_softmax(1)
        p, chunks = log_p.exp(), ids // SCORE_CHUNK
        self.sums.index_add_(0, chunks, p)
        self.negative_entropies.index_add_(0, chunks, (p * log_p).sum(1))
        self.counts.index_add_(0, chunks, torch.ones(len(ids), dtype=torch.float64))

    def value(self, world: World) -> float:
        parts = (self.sums, self.negative_entropies, self.counts)
        sums, inner, counts = (world.sum(part.to(world.device)).cpu() for part in parts)
        mean = sums / counts[:, None]
        divergence = inner / counts - torch.special.xlogy(mean, mean).sum(1)
        return divergence.exp().mean().item()
