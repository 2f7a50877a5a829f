"""Multi-codebook quantization of UniTok (arXiv:2502.20321): product codes with learned codebooks.

The D channels of a latent are split into G chunks of neighbors, and each chunk takes the nearest code of a codebook of
its own: K^G different tokens from G * K codes. Distances, gradients, entropies and k-means are those of `vq.py`, chunk
by chunk; the default compares directions and copies gradients straight through, as the paper does.

Shapes    z, z_q (B,N,D) float32, D = groups * codebook_dim      indices (B,N,G), or (B,N) for one group
Losses    those of `vq.py`, averaged over groups
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.validation import Problem, at_least
from tokenizer.quantizers.base import Quantized
from tokenizer.quantizers.codebooks import SeveralCodebooks, section_of_book
from tokenizer.quantizers.vq import VectorQuantizer, VQConfig


@dataclass(kw_only=True, slots=True)
class MCQConfig(VQConfig):
    """As `VQConfig`, of each of `groups` codebooks; a latent has groups * codebook_dim channels."""

    groups: int = 8
    codebook_size: int = 4096
    codebook_dim: int = 8  # channels of a code, of one group
    rotation_trick: bool = False

    def problems(self) -> Iterator[Problem]:
        yield from VQConfig.problems(self)
        yield from at_least(self, "groups", 1)


class ProductVQ(SeveralCodebooks):
    """See the module docstring."""

    config_class = MCQConfig
    in_words = "nearest of learned code vectors, for each group of channels"

    def __init__(self, config: MCQConfig) -> None:
        self.config = config
        section = section_of_book(config)
        books = [VectorQuantizer(section) for _ in range(config.groups)]
        super().__init__(books, config.groups, config.groups * config.codebook_dim)

    def forward(self, z: Tensor, *, quantize: bool = True, entropy: bool = False) -> Quantized:
        # Each chunk by its own codebook, which also keeps the latents of a warm-up.
        chunks = z.chunk(self.num_groups, dim=-1)
        pairs = zip(self.books, chunks, strict=True)
        chosen = [book(chunk, quantize=quantize, entropy=entropy) for book, chunk in pairs]
        indices = self.join([each.indices for each in chosen])
        if self.training:
            self.remember(indices)

        z_q = torch.cat([each.z_q for each in chosen], dim=-1)
        return Quantized(z_q, indices, self.mean_losses([each.losses for each in chosen]))

    def decode_indices(self, indices: Tensor) -> Tensor:
        columns = zip(self.books, self.split(indices), strict=True)
        return torch.cat([book.decode_indices(column) for book, column in columns], dim=-1)

    def choice_distances(self, z: Tensor, indices: Tensor) -> Tensor:
        """The sum over groups: each group makes a choice of its own."""
        chunks = z.chunk(self.num_groups, dim=-1)
        parts = zip(self.books, chunks, self.split(indices), strict=True)
        return sum(book.choice_distances(chunk, column) for book, chunk, column in parts)

    def finish_warmup(self) -> bool:
        """With `init=kmeans`: sets each codebook by k-means on its chunks of the latents of the warm-up."""
        has_changed = [book.finish_warmup() for book in self.books]
        return any(has_changed)
