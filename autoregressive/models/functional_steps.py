"""One decode step of a GPT as a function of all its inputs: nothing is kept between two calls.

Other programs decode with it (`autoregressive.export`): they hold the keys and values, and hand them in with every
token. The arithmetic is that of the static steps of `decode_steps`: attention reads the whole cache under a mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FunctionalStep(nn.Module):
    """See `autoregressive.models.base.Generator.functional_step`."""

    def __init__(self, gpt: nn.Module) -> None:
        super().__init__()
        self.network = gpt

    def forward(
        self, labels: Tensor, tokens: Tensor, position: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        gpt = self.network

        # The class at position 0, then the token before. Both are embedded: one program serves all positions.
        is_first = (position == 0)[:, None]
        embedded = torch.where(is_first, gpt.class_embedding(labels), gpt.head.embed(tokens))

        # The caller's keys and values stay as they are.
        cache = gpt.cache_of(keys.clone(), values.clone(), labels)
        hidden = gpt.decode_embedded(embedded, position, cache)
        if len(gpt.codebook_sizes) > 1:
            return hidden, cache.keys, cache.values
        return gpt.head.logits(hidden, tokens), cache.keys, cache.values

    def empty_cache(self, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values before the first token, (layers, rows, heads, N, head_dim) each."""
        cache = self.network.new_cache(rows)
        return cache.keys, cache.values


class FunctionalHead(nn.Module):
    """See `autoregressive.models.base.Generator.functional_head`."""

    def __init__(self, gpt: nn.Module) -> None:
        super().__init__()
        self.network = gpt

    def forward(self, hidden: Tensor, indices: Tensor) -> Tensor:
        return self.network.head.logits(hidden[:, None], indices[:, None])[:, 0]
