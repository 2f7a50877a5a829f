"""Inception Score (arXiv:1606.03498), streamed: exp of the mean KL between p(y|x) and p(y).

The published metric is the mean over chunks of consecutive images, so it depends on their order: where they are sorted
by class, a chunk holds few classes, and the score is far too low. `inception_score_all` is that of one chunk of all
images, whatever their order; it is a little larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.arithmetic import ceil_div
from engine.finite import require_finite
from engine.world import World
from evaluations.metrics.blocks import NUM_BLOCKS, block_numbers
from evaluations.metrics.class_order import order_problem
from evaluations.metrics.intervals import Estimate, jackknife

SCORE_CHUNK = 5000  # consecutive images of one score; the metric is the mean of these scores


class InceptionScore:
    """Class probabilities summed over chunks of consecutive image numbers, for `count` images in all."""

    def __init__(self, count: int, num_classes: int) -> None:
        num_chunks = ceil_div(count, SCORE_CHUNK)
        self.sums = torch.zeros(num_chunks, num_classes, dtype=torch.float64)  # of p(y|x)
        self.negative_entropies = torch.zeros(num_chunks, dtype=torch.float64)  # of p(y|x), in nats, summed
        self.counts = torch.zeros(num_chunks, dtype=torch.float64)

        # The same by chunk and block, for the values without a block.
        self.blocks = block_numbers(count)
        self.block_sums = torch.zeros(num_chunks * NUM_BLOCKS, num_classes, dtype=torch.float64)
        self.block_negative_entropies = torch.zeros(num_chunks * NUM_BLOCKS, dtype=torch.float64)
        self.block_counts = torch.zeros(num_chunks * NUM_BLOCKS, dtype=torch.float64)
        self.classes = torch.zeros(count, dtype=torch.int64)  # the most likely one of each image

    def update(self, ids: Tensor, logits: Tensor) -> None:
        """Adds the logits (B,num_classes) of the images number `ids` (B,).

        Raises NonFiniteValuesError for NaN or infinity.
        """
        require_finite(logits, "logits of the classes")
        log_p = logits.double().cpu().log_softmax(1)
        p = log_p.exp()
        negative_entropies = (p * log_p).sum(1)
        ones = torch.ones(len(ids), dtype=torch.float64)
        chunks = ids // SCORE_CHUNK
        self.sums.index_add_(0, chunks, p)
        self.negative_entropies.index_add_(0, chunks, negative_entropies)
        self.counts.index_add_(0, chunks, ones)

        cells = chunks * NUM_BLOCKS + self.blocks[ids]
        self.block_sums.index_add_(0, cells, p)
        self.block_negative_entropies.index_add_(0, cells, negative_entropies)
        self.block_counts.index_add_(0, cells, ones)
        self.classes[ids] = p.argmax(1)

    def order_problem(self, world: World) -> str | None:
        """What to say of the score over chunks where the images seem to be sorted by class. A collective."""
        return order_problem(world.sum(self.classes.to(world.device)).cpu(), SCORE_CHUNK, "most likely class")

    def value(self, world: World) -> float:
        """The score over the images of all ranks. A collective: every rank calls it."""
        sums = world.sum(self.sums.to(world.device)).cpu()
        negative_entropies = world.sum(self.negative_entropies.to(world.device)).cpu()
        counts = world.sum(self.counts.to(world.device)).cpu()
        return _scores(sums, negative_entropies, counts).mean().item()

    def without_blocks(self, world: World) -> tuple[Estimate, Estimate]:
        """The score over chunks and that of one chunk of all images, with the jackknife's errors. A collective.

        Raises ValueError for fewer images than two per block.
        """
        if len(self.blocks) < 2 * NUM_BLOCKS:
            raise ValueError(f"{NUM_BLOCKS} blocks need {2 * NUM_BLOCKS} or more images, found {len(self.blocks)}")
        sums = world.sum(self.block_sums.to(world.device)).cpu().unflatten(0, (-1, NUM_BLOCKS))
        negative_entropies = world.sum(self.block_negative_entropies.to(world.device)).cpu().view(-1, NUM_BLOCKS)
        counts = world.sum(self.block_counts.to(world.device)).cpu().view(-1, NUM_BLOCKS)

        # All blocks, then without each; chunks side by side, then as one.
        chunked, of_all = [], []
        for left_out in (None, *range(NUM_BLOCKS)):
            included = torch.ones(NUM_BLOCKS, dtype=torch.float64)
            if left_out is not None:
                included[left_out] = 0
            parts = torch.einsum("cbk,b->ck", sums, included), negative_entropies @ included, counts @ included
            chunked.append(_scores(*parts).mean().item())
            of_all.append(_scores(*(part.sum(0, keepdim=True) for part in parts)).item())
        return jackknife(chunked[0], chunked[1:]), jackknife(of_all[0], of_all[1:])


def _scores(sums: Tensor, negative_entropies: Tensor, counts: Tensor) -> Tensor:
    """The score of each chunk that has images, from sums of p(y|x) (chunks,classes) and of p log p (chunks,)."""
    has_images = counts > 0
    counts = counts[has_images]

    # Mean KL of a chunk = mean of sum p log p, minus sum of mean(p) log mean(p).
    marginal = sums[has_images] / counts[:, None]
    divergence = negative_entropies[has_images] / counts - torch.special.xlogy(marginal, marginal).sum(1)
    return divergence.exp()
