"""The GPT of GigaTok and LlamaGen: a Llama-style decoder over image tokens, conditioned on a class (arXiv:2406.06525,
section 3.2).

The sequence is [class, token 0, ..., token N-2]; position p predicts token p. RMSNorm before attention and SwiGLU, no
biases, no weight tying. Positions are a learned table (GigaTok), or 2D rotary on a square grid of tokens (LlamaGen).
Tokens of several indices (`streams`, WeTok) are read and written by `autoregressive.heads`.

Shapes    labels (B,) int64, `num_classes` is the null class      tokens (B,N) int64      logits (B,N,V) float32
          with k streams tokens (B,N,k) and logits (B,N,k,V)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from autoregressive.models.heads import FactorizedHead
from autoregressive.models.kv_cache import KVCache
from autoregressive.models.layers import Layer, RMSNorm
from autoregressive.models.rope import rope2d_table
from engine.messages import ConfigError
from engine.registry import transformer_size

SIZES = {  # width, layers, heads
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
    "3b": (3200, 24, 32),
}


@dataclass(kw_only=True, slots=True)
class GPTConfig:
    """A named size, or its own width, layers and heads; and the data it is for."""

    size: str | None = None  # b | l | xl | xxl | 3b
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    vocab_size: int = 16384  # codebook size of the tokenizer; not used with streams
    streams: list[int] = field(default_factory=list)  # codebook size of each index of a token; empty = one index
    head_layers: int = 2  # with streams: of the transformer over the indices of a token
    num_tokens: int = 256  # tokens of an image
    num_classes: int = 1000
    positions: Literal["learned", "rope2d"] = "learned"  # rope2d: num_tokens is a square grid, row-major
    qk_norm: bool = False  # layer norm of queries and keys of each head; no published model has it
    class_dropout_prob: float = 0.1  # training: share of labels replaced by the null class
    token_dropout: float = 0.1  # training: after the embeddings
    residual_dropout: float = 0.1  # training: after attention and after the MLP

    def __post_init__(self) -> None:
        for name in ("class_dropout_prob", "token_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"model.{name}={getattr(self, name)} must lie in 0..1")
        if min(self.vocab_size, self.num_tokens, self.num_classes, self.head_layers, *self.streams) < 1:
            raise ConfigError("model: vocab_size, streams, num_tokens, num_classes and head_layers must be 1 or more")
        if self.positions == "rope2d" and len(self.streams) > self.num_tokens + 1:
            raise ConfigError(f"model.streams: at most {self.num_tokens + 1} with rope2d, one a row of the table")
        if self.positions == "rope2d" and math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise ConfigError(f"model.num_tokens={self.num_tokens} must be a square number with positions=rope2d")

    @property
    def num_indices(self) -> int:
        """Of a token."""
        return max(1, len(self.streams))

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Of the tokens of an image: (N,) or (N,k)."""
        return (self.num_tokens, len(self.streams)) if self.streams else (self.num_tokens,)

    def dims(self) -> tuple[int, int, int]:
        """(width, layers, heads)."""
        width, layers, heads = transformer_size(self, SIZES, "model")
        multiple = heads * (4 if self.positions == "rope2d" else 1)
        if width % multiple:
            raise ConfigError(f"model.width={width} must be divisible by {multiple} for model.heads={heads}")
        return width, layers, heads


class GPT(nn.Module):
    """See the module docstring."""

    forward_methods = ("next_hidden", "index_logits")  # called from outside beside `forward`

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        width, layers, heads = config.dims()
        self.null_class = config.num_classes
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.head = None
        if config.streams:
            own = nn.ModuleList(Layer(width, heads, config.residual_dropout) for _ in range(config.head_layers))
            self.head = FactorizedHead(config.streams, width, own, RMSNorm(width))
        else:
            self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = None
        if config.positions == "learned":
            self.positional_embedding = nn.Parameter(torch.randn(config.num_tokens + 1, width) * width**-0.5)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Layer(width, heads, config.residual_dropout) for _ in range(layers))
        for layer in (*self.layers, *(self.head.layers if self.head else ())) if config.qk_norm else ():
            layer.attention.add_qk_norm()
        if self.head is None:
            self.norm = RMSNorm(width)
            self.output = nn.Linear(width, config.vocab_size, bias=False)
        self.apply(self._init)
        for output in [self.output] if self.head is None else self.head.outputs:
            nn.init.zeros_(output.weight)  # the first loss is log(vocab_size)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B,n) or (B,n,k) -> (B,n,C)."""
        return self.token_embedding(tokens) if self.head is None else self.head.embed(tokens)

    def embed(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """[class, tokens], with learned positions where the model has them: (B,), (B,n) -> (B,n+1,C)."""
        x = torch.cat([self.class_embedding(labels)[:, None], self.embed_tokens(tokens)], dim=1)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[: x.shape[1]]
        return self.token_dropout(x)

    def rope(self, first: int, count: int, device: torch.device) -> Tensor | None:
        """The rotary table of `count` positions from `first` on, or None for learned positions."""
        if self.config.positions == "learned":
            return None
        width, _, heads = self.config.dims()
        table = rope2d_table(math.isqrt(self.config.num_tokens), width // heads, device)
        return table[first : first + count]

    def forward(self, labels: Tensor, tokens: Tensor, drop: Tensor | None = None) -> Tensor:
        """Teacher-forced logits (B,N,V) of all tokens (B,N). Rows where `drop` (B,) is true lose their class."""
        if drop is not None:
            labels = torch.where(drop, self.null_class, labels)
        hidden = self.features(labels, tokens, len(self.layers))
        if self.head is not None:
            return self.head(hidden, tokens, self.rope(0, tokens.shape[2], hidden.device))
        return self.output(self.norm(hidden)).float()

    def features(self, labels: Tensor, tokens: Tensor, layer: int) -> Tensor:
        """Hidden states (B,N,C) after layer number `layer`, counted from 1, without the final norm."""
        x = self.embed(labels, tokens[:, :-1])
        rope = self.rope(0, x.shape[1], x.device)
        for block in self.layers[:layer]:
            x = block(x, rope)
        return x

    def next_hidden(self, inputs: Tensor, position: int, cache: KVCache) -> Tensor:
        """Hidden state (B,C) at `position`. `inputs`: class labels (B,) at position 0, then the token before."""
        x = (self.class_embedding if position == 0 else self.embed_tokens)(inputs)[:, None]
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[position]
        rope = self.rope(position, 1, x.device)
        for i, layer in enumerate(self.layers):
            x = layer(x, rope, (cache.keys[i], cache.values[i]), position)
        return x[:, 0]

    def index_logits(self, x: Tensor, i: int, cache: KVCache) -> Tensor:
        """Logits (B,V) of index i of a token: x is its hidden state (B,C) for i = 0, then index i - 1 (B,)."""
        if self.head is None:
            return self.output(self.norm(x)).float()
        return self.head.next_logits(x, i, self.rope(i, 1, x.device), cache.head)

    def next_logits(self, inputs: Tensor, position: int, cache: KVCache) -> Tensor:
        """Logits (B,V) of token number `position`, or of the first of its indices."""
        return self.index_logits(self.next_hidden(inputs, position, cache), 0, cache)
