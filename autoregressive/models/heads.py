"""How a GPT reads and writes a token: the plain head for one index per token, the factorized head for several.

The third head, of masked bits, has a file of its own (`autoregressive.models.masked_bits`).

Shapes    hidden (B,N,C)      tokens (B,N) or (B,N,k) int64      logits (B,N,V) or (B,N,k,V) float32
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.head import Head, HeadSettings
from autoregressive.models.kv_cache import KVCache
from autoregressive.models.layers import Layer, RMSNorm
from autoregressive.models.masked_bits import MaskedBitsHead
from engine.flops import linear_flops


class PlainHead(Head):
    """One index per token: an embedding table reads it, a norm and a linear layer write it.

    Published files have these three at the top level. They are therefore modules of the GPT, `token_embedding`, `norm`
    and `output`, in the order of the published code; this class only refers to them and is no `nn.Module`.
    """

    max_indices = 1

    def __init__(self, settings: HeadSettings) -> None:
        (self.codebook_size,) = settings.codebook_sizes
        self.width = settings.width
        self.has_norm = settings.final_norm

    def add_input(self, gpt: nn.Module) -> None:
        self.embedding = nn.Embedding(self.codebook_size, self.width)
        gpt.token_embedding = self.embedding

    def add_output(self, gpt: nn.Module) -> None:
        self.norm = RMSNorm(self.width) if self.has_norm else nn.Identity()
        self.output = nn.Linear(self.width, self.codebook_size, bias=False)
        gpt.norm = self.norm
        gpt.output = self.output

    def output_layers(self) -> list[nn.Linear]:
        return [self.output]

    def token_shape(self, num_tokens: int) -> tuple[int, ...]:
        return (num_tokens,)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return self.output(self.norm(hidden)).float()

    def flops(self, num_tokens: int) -> int:
        return linear_flops(self.output, num_tokens)

    def next_logits(self, hidden: Tensor, previous_index: Tensor | None, number: int, cache: KVCache) -> Tensor:
        return self.output(self.norm(hidden)).float()

    def new_cache(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """A cache of no layers: there is nothing to keep."""
        return KVCache.empty(0, batch_size, 1, 1, self.width, dtype=dtype, device=device)


class FactorizedHead(Head, nn.Module):
    """The head of WeTok (arXiv:2508.05599, section 3.4): k indices per token, one after the other.

    A token's k indices are read by k embedding tables, summed. They are written by a small transformer over the k
    indices of one position: it sees the hidden state of that position, then indices 0, 1, ... by the same tables, and
    predicts the next. Logits of an index with fewer than V codes, the largest of the k sizes, are -inf beyond them.
    """

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        width = settings.width
        sizes = settings.codebook_sizes
        self.rope = settings.rope
        self.attention_heads = settings.heads

        # Do not reorder: the layers are built before the tables, which fixes random initialization, and registered
        # after them, which fixes the optimizer state.
        layers = nn.ModuleList(
            Layer(width, settings.heads, settings.dropout, settings.qk_norm) for _ in range(settings.layers)
        )
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.layers = layers
        self.norm = RMSNorm(width)
        self.outputs = nn.ModuleList(nn.Linear(width, size, bias=False) for size in sizes)

    def output_layers(self) -> Sequence[nn.Linear]:
        return self.outputs

    def token_shape(self, num_tokens: int) -> tuple[int, ...]:
        return (num_tokens, len(self.tables))

    def embed(self, tokens: Tensor) -> Tensor:
        return sum(table(index) for table, index in zip(self.tables, tokens.unbind(-1), strict=True))

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        # One short sequence per position: its hidden state, then all its indices but the last.
        earlier_indices = tokens[..., :-1].unbind(-1)
        embedded = [table(index) for table, index in zip(self.tables[:-1], earlier_indices, strict=True)]
        x = torch.stack([hidden, *embedded], dim=2).flatten(0, 1)
        rope = self.rope.rows(0, len(self.tables), x.device)
        for layer in self.layers:
            x = layer(x, rope)
        x = self.norm(x).unflatten(0, hidden.shape[:2])

        # Pad all to the largest codebook, with logits of impossible codes.
        logits = [output(x[:, :, index]).float() for index, output in enumerate(self.outputs)]
        widest = max(part.shape[-1] for part in logits)
        padded = [F.pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in logits]
        return torch.stack(padded, dim=2)

    def flops(self, num_tokens: int) -> int:
        layers = num_tokens * sum(layer.flops(len(self.tables)) for layer in self.layers)
        return layers + sum(linear_flops(output, num_tokens) for output in self.outputs)

    def next_logits(self, hidden: Tensor, previous_index: Tensor | None, number: int, cache: KVCache) -> Tensor:
        # The cache holds what the layers made of the hidden state and of earlier indices.
        x = hidden if previous_index is None else self.tables[number - 1](previous_index)
        x = x[:, None]
        rope = self.rope.row(number, x.device)
        for layer, cached in zip(self.layers, cache.step(number), strict=True):
            x = layer(x, rope, cached)
        return self.outputs[number](self.norm(x[:, 0])).float()

    def new_cache(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        heads = self.attention_heads
        head_dim = self.norm.weight.shape[0] // heads
        return KVCache.empty(
            len(self.layers), batch_size, heads, len(self.tables), head_dim, dtype=dtype, device=device
        )


HEADS: dict[str, type[Head]] = {"plain": PlainHead, "factorized": FactorizedHead, "masked_bits": MaskedBitsHead}


def default_head(num_indices: int) -> str:
    """The name of the head for tokens of `num_indices` indices."""
    return "plain" if num_indices == 1 else "factorized"
