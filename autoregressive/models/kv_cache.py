"""Keys and values of the tokens so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from autoregressive.models.gpt import GPT


class KVCache:
    """Keys and values of all layers, (layers, B, heads, length, head_dim); those of the head serve every token anew."""

    def __init__(self, gpt: GPT, batch_size: int) -> None:
        (width, layers, heads), config, like = gpt.config.dims(), gpt.config, gpt.class_embedding.weight
        depth = config.head_layers if config.streams else 0
        sizes = 2 * [(layers, config.num_tokens)] + 2 * [(depth, config.num_indices)]
        shapes = [(n, batch_size, heads, length, width // heads) for n, length in sizes]
        empty = [torch.zeros(shape, dtype=like.dtype, device=like.device) for shape in shapes]
        self.keys, self.values, self.head = empty[0], empty[1], tuple(empty[2:])

    def keep_rows(self, count: int) -> None:
        """Drops all rows of the batch after the first `count`."""
        self.keys, self.values = self.keys[:, :count], self.values[:, :count]
        self.head = tuple(part[:, :count] for part in self.head)
