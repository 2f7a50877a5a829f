"""Inception Score (arXiv:1606.03498), streamed: exp of the mean KL between p(y|x) and p(y)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.arithmetic import ceil_div
from engine.finite import require_finite
from engine.world import World

SCORE_CHUNK = 5000  # consecutive images of one score; the metric is the mean of these scores


class InceptionScore:
    """Class probabilities summed over chunks of consecutive image numbers, for `count` images in all."""

    def __init__(self, count: int, num_classes: int) -> None:
        num_chunks = ceil_div(count, SCORE_CHUNK)
        self.sums = torch.zeros(num_chunks, num_classes, dtype=torch.float64)  # of p(y|x)
        self.negative_entropies = torch.zeros(num_chunks, dtype=torch.float64)  # of p(y|x), in nats, summed
        self.counts = torch.zeros(num_chunks, dtype=torch.float64)

    def update(self, ids: Tensor, logits: Tensor) -> None:
        """Adds the logits (B,num_classes) of the images number `ids` (B,).

        Raises NonFiniteValuesError for NaN or infinity.
        """
        require_finite(logits, "logits of the classes")
        log_p = logits.double().cpu().log_softmax(1)
        p = log_p.exp()
        chunks = ids // SCORE_CHUNK
        self.sums.index_add_(0, chunks, p)
        self.negative_entropies.index_add_(0, chunks, (p * log_p).sum(1))
        self.counts.index_add_(0, chunks, torch.ones(len(ids), dtype=torch.float64))

    def value(self, world: World) -> float:
        """The score over the images of all ranks. A collective: every rank calls it."""
        sums = world.sum(self.sums.to(world.device)).cpu()
        negative_entropies = world.sum(self.negative_entropies.to(world.device)).cpu()
        counts = world.sum(self.counts.to(world.device)).cpu()

        # Mean KL of a chunk = mean of sum p log p, minus sum of mean(p) log mean(p).
        marginal = sums / counts[:, None]
        divergence = negative_entropies / counts - torch.special.xlogy(marginal, marginal).sum(1)
        return divergence.exp().mean().item()
