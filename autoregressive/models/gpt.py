"""The GPT of GigaTok, LlamaGen and WeTok: a Llama-style decoder over image tokens, conditioned on a class.

arXiv:2406.06525, section 3.2. The sequence is [class, token 0, ..., token N-2]; position p predicts token p. RMSNorm
before attention and SwiGLU, no biases, no weight tying. Positions are a learned table (GigaTok), or 2D rotary on a
square grid of tokens (LlamaGen, WeTok). Tokens are read and written by a head (`autoregressive.models.heads`).

Shapes    labels (B,) int64, `num_classes` is the null class      tokens (B,N) int64      logits (B,N,V) float32
          with k indices per token: tokens (B,N,k) and logits (B,N,k,V)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.bit_drawing import BitDrawing
from autoregressive.models.base import DataSizes
from autoregressive.models.bits import BitsConfig
from autoregressive.models.decode_steps import StepFunctions, Steps
from autoregressive.models.functional_steps import FunctionalHead, FunctionalStep
from autoregressive.models.head import HeadSettings
from autoregressive.models.heads import HEADS, default_head
from autoregressive.models.kv_cache import KVCache, Position
from autoregressive.models.layers import Layer
from autoregressive.models.named_sizes import chosen_size, is_given_in_numbers, size_problems
from autoregressive.models.random_order import OrderConfig, in_order, in_raster, input_rows
from autoregressive.models.rope import NoRope, Rope2D
from autoregressive.models.token_by_token import TokenByToken, decoding_rows
from autoregressive.sampling import Draw, IndexSettings, Numbers
from engine.flops import TRAINED, PartFlops
from engine.messages import ConfigError
from engine.validation import Problem, Section, at_least, in_range, one_of

NUMBERS = ("width", "layers", "heads")  # keys of a size
SIZES = {  # width, layers, heads
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
    "3b": (3200, 24, 32),
}
DEFAULT_SIZES = DataSizes(codebook_sizes=(16384,), num_tokens=256, num_classes=1000)  # those of most published models


@dataclass(kw_only=True, slots=True)
class GPTConfig(Section):
    """A named size, or width, layers and heads; and the tokens and classes that it is for.

    Tokens and classes may be left open: training takes them from the codes, and whoever has no codes (a plan, a
    published file) takes those of most published models.
    """

    SIZES: ClassVar[Mapping[str, tuple[int, int, int]]] = SIZES  # name -> width, layers, heads
    KEY: ClassVar[str] = "model.gpt"  # of the section, for messages

    size: str | None = None  # b | l | xl | xxl | 3b
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    vocab_size: int | None = None  # codes of a token with one index; null: as many as data.codes has (else 16384)
    codebook_sizes: list[int] = field(default_factory=list)  # codes of each index of a token; empty = vocab_size
    head: str | None = None  # plain | factorized | masked_bits; null: plain for one index, factorized for several
    head_layers: int = 2  # factorized: of its transformer over the indices of a token; masked_bits: of its MLP
    bits: BitsConfig = field(default_factory=BitsConfig)  # masked_bits: its width, training and sampling
    num_tokens: int | None = None  # tokens per image; null: as many as data.codes has (else 256)
    num_classes: int | None = None  # null: as many as data.codes has (else 1000)
    positions: Literal["learned", "rope2d"] = "learned"  # rope2d: num_tokens is a square grid, row-major
    qk_norm: bool = False  # layer norm of queries and keys of each head; no published model has it
    target_positions: bool = False  # a second table: each input also says which cell it predicts (for any order)
    order: OrderConfig = field(default_factory=OrderConfig)  # training: random orders of prediction
    class_dropout_prob: float = 0.1  # training: fraction of labels replaced by the null class
    token_dropout: float = 0.1  # training: after the embeddings
    residual_dropout: float = 0.1  # training: after attention and after the MLP

    def problems(self) -> Iterator[Problem]:
        yield from size_problems(self, NUMBERS)
        if is_given_in_numbers(self, NUMBERS) and self.width % self._width_multiple(self.heads):
            reason = f"heads={self.heads} and positions={self.positions}"
            yield Problem("width", self.width, f"divisible by {self._width_multiple(self.heads)} with {reason}")
        for name in ("vocab_size", "head_layers", "num_tokens", "num_classes"):
            if getattr(self, name) is not None:
                yield from at_least(self, name, 1)
        for name in ("class_dropout_prob", "token_dropout", "residual_dropout"):
            yield from in_range(self, name, 0, 1)
        yield from self._head_problems()
        if self.order.is_random and not self.target_positions:
            yield Problem("target_positions", False, "true with random orders (order.random_end above 0)")
        if self.positions == "rope2d" and self.num_tokens is not None and self.num_tokens >= 1:
            yield from self._rope_problems()

    def _head_problems(self) -> Iterator[Problem]:
        if min(self.codebook_sizes, default=1) < 1:
            yield Problem("codebook_sizes", self.codebook_sizes, "numbers of 1 or more")
        if self.head is not None:
            yield from one_of(self, "head", HEADS)
        if self.head_name not in HEADS:
            return
        if self.index_sizes != (None,):
            yield from HEADS[self.head_name].section_problems(self.index_sizes, self.bits)
        max_indices = HEADS[self.head_name].max_indices
        if max_indices is not None and len(self.index_sizes) > max_indices:
            sizes = self.codebook_sizes
            yield Problem("head", self.head, f"null or another, for tokens of several indices (codebook_sizes={sizes})")

    def _rope_problems(self) -> Iterator[Problem]:
        if math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            yield Problem("num_tokens", self.num_tokens, "a square number with positions=rope2d")
        rows = self.num_tokens + 1
        if len(self.codebook_sizes) > rows:
            accepted = f"at most {rows} sizes with positions=rope2d, one per row of the rotary table"
            yield Problem("codebook_sizes", self.codebook_sizes, accepted)

    def _width_multiple(self, heads: int) -> int:
        """What the width must be a multiple of: 2D rotary positions turn pairs of channels, of rows and of columns."""
        return heads * 4 if self.positions == "rope2d" else heads

    def completed(self, sizes: DataSizes) -> GPTConfig:
        """The section with what it leaves open as in `sizes`."""
        codebook_sizes = list(self.codebook_sizes)
        if self.vocab_size is None and not codebook_sizes and len(sizes.codebook_sizes) > 1:
            codebook_sizes = list(sizes.codebook_sizes)

        # Tokens with several indices do not use vocab_size; runs that were begun with its old default have that on
        # record, and must go on.
        vocab_size = DEFAULT_SIZES.codebook_sizes[0] if codebook_sizes else sizes.codebook_sizes[0]
        return replace(
            self,
            vocab_size=vocab_size if self.vocab_size is None else self.vocab_size,
            codebook_sizes=codebook_sizes,
            num_tokens=sizes.num_tokens if self.num_tokens is None else self.num_tokens,
            num_classes=sizes.num_classes if self.num_classes is None else self.num_classes,
        )

    @property
    def index_sizes(self) -> tuple[int, ...]:
        """Codebook size of each index of a token, of a completed section."""
        return tuple(self.codebook_sizes) or (self.vocab_size,)

    @property
    def head_name(self) -> str:
        """The head that is built: that of the config, or the one for this number of indices."""
        return self.head or default_head(len(self.index_sizes))

    def dims(self) -> tuple[int, int, int]:
        """(width, layers, heads). Raises ConfigError where neither they nor a size are given."""
        return chosen_size(self, NUMBERS, self.KEY)


class GPT(TokenByToken):
    """See the module docstring, and `Generator` for what is asked of it."""

    config_class = GPTConfig
    in_words = "autoregressive transformer"
    layer_class: ClassVar[type[Layer]] = Layer
    head_norms: ClassVar[bool] = True  # the head norms the states of the last layer; a subclass may do it itself

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        config = config.completed(DEFAULT_SIZES)
        width, layers, heads = config.dims()
        self.config = config
        self.num_classes = config.num_classes
        self.num_tokens = config.num_tokens
        self.num_layers = layers
        self.codebook_sizes = config.index_sizes
        self.class_dropout_prob = config.class_dropout_prob
        self.published_size = config.size
        self.order = config.order
        self.has_target_positions = config.target_positions

        # Do not reorder: the order fixes random initialization and optimizer state.
        self.rope = Rope2D(math.isqrt(self.num_tokens), width // heads) if config.positions == "rope2d" else NoRope()
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)

        # What reads and writes tokens.
        head_settings = HeadSettings(
            codebook_sizes=config.index_sizes,
            num_tokens=config.num_tokens,
            width=width,
            heads=heads,
            layers=config.head_layers,
            dropout=config.residual_dropout,
            qk_norm=config.qk_norm,
            rope=self.rope,
            final_norm=self.head_norms,
            bits=config.bits,
        )
        self.head = HEADS[config.head_name](head_settings)
        self.head.add_input(self)
        self.draws_bits = self.head.draws_bits
        self.takes_numbers = self.head.takes_numbers
        self.held_out_facts = self.head.held_out_facts

        # Positions and layers.
        self.positional_embedding = None
        if config.positions == "learned":
            self.positional_embedding = nn.Parameter(torch.randn(config.num_tokens + 1, width) * width**-0.5)
        self.target_embedding = nn.Parameter(torch.zeros(config.num_tokens, width)) if config.target_positions else None
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(
            self.layer_class(width, heads, config.residual_dropout, config.qk_norm) for _ in range(layers)
        )
        self.head.add_output(self)

        # Initial values.
        self.apply(self._init)
        self.head.initialize()
        for output in self.head.output_layers():
            nn.init.zeros_(output.weight)  # every code is equally likely: the first loss is log(codebook size)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    @classmethod
    def completed(cls, section: GPTConfig, sizes: DataSizes) -> GPTConfig:
        return section.completed(sizes)

    @property
    def token_shape(self) -> tuple[int, ...]:
        return self.head.token_shape(self.num_tokens)

    @property
    def num_draws(self) -> int:
        return self.head.num_draws(self.num_tokens)

    def layout_layers(self) -> list[nn.Linear]:
        return [module for module in self.modules() if isinstance(module, nn.Linear)]

    # ---------------------------------------------------------------------------------------- all tokens at once
    def forward(
        self,
        labels: Tensor,
        tokens: Tensor,
        drop: Tensor | None = None,
        order: Tensor | None = None,
        **of_head: Tensor,
    ) -> Tensor:
        """Teacher-forced logits of all tokens, in raster. Rows where `drop` (B,) is true lose their class.

        Place p of the output chain predicts the token of cell order[p], for an `order` (B,N); raster without it.
        `of_head` are the head's own choices in training (`Head.training_inputs`).
        """
        if drop is not None:
            labels = torch.where(drop, self.null_class, labels)
        hidden = self.finished(self.features(labels, tokens, self.num_layers, order), labels)
        if order is not None:
            hidden = in_raster(hidden, order)
        return self.head.logits(hidden, tokens, **of_head)

    def features(self, labels: Tensor, tokens: Tensor, layer: int, order: Tensor | None = None) -> Tensor:
        """Hidden states (B,N,C) after layer number `layer`, counted from 1, without the final norm.

        With an `order` (B,N) they are those of the places of the output chain.
        """
        if order is None:
            x = self.embed(labels, tokens[:, :-1])
            rope = self.rope.rows(0, x.shape[1], x.device)
        else:
            x = self.embed(labels, in_order(tokens, order)[:, :-1], order)
            rope = self.rope.rows_at(input_rows(order))
        return self.pass_layers(x, rope, labels, layer)

    def pass_layers(self, x: Tensor, rope: Tensor | None, labels: Tensor, layer: int) -> Tensor:
        """Inputs (B,n,C) through the first `layer` layers."""
        for block in self.layers[:layer]:
            x = block(x, rope)
        return x

    def finished(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """What the head reads, from the states (B,N,C) after the last layer."""
        return hidden

    def embed(self, labels: Tensor, tokens: Tensor, order: Tensor | None = None) -> Tensor:
        """[class, tokens], with the tables of positions that the model has: (B,), (B,n) -> (B,n+1,C).

        With an `order` (B,N), of n+1 = N cells, tokens are in that order.
        """
        x = torch.cat([self.class_embedding(labels)[:, None], self.head.embed(tokens)], dim=1)
        if self.positional_embedding is not None:
            table = self.positional_embedding
            x = x + (table[: x.shape[1]] if order is None else F.embedding(input_rows(order), table))
        if self.target_embedding is not None:
            table = self.target_embedding
            x = x + (table[: x.shape[1]] if order is None else F.embedding(order, table))
        return self.token_dropout(x)

    def training_flops(self) -> tuple[PartFlops, ...] | None:
        head = self.head.flops(self.num_tokens)
        if head is None:
            return None
        layers = TRAINED * sum(layer.flops(self.num_tokens) for layer in self.layers)
        return PartFlops("layers", "matrix", layers, recomputed=True), PartFlops("head", "matrix", TRAINED * head)

    # ---------------------------------------------------------------------------------------- what the head decides
    def loss(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        return self.head.loss(outputs, tokens)

    def sample_losses(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        return self.head.sample_losses(outputs, tokens)

    def training_choices(self) -> Callable[[np.random.Generator], dict[str, Tensor]] | None:
        choices = (super().training_choices(), self.head.training_choices(self.num_tokens))
        drawn = tuple(choice for choice in choices if choice is not None)
        return partial(_all_choices, drawn) if len(drawn) > 1 else next(iter(drawn), None)

    def training_inputs(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Any]:
        return super().training_inputs(batch, progress) | self.head.training_inputs(batch)

    def next_token(
        self,
        steps: Steps,
        inputs: Tensor,
        position: int,
        settings: list[IndexSettings],
        draw: Draw,
        batch: int,
        numbers: Numbers | None = None,
        bits: BitDrawing | None = None,
    ) -> Tensor:
        if self.head.draws_by_index:
            return super().next_token(steps, inputs, position, settings, draw, batch)
        logits_of = partial(steps.logits, steps.hidden(inputs, position))
        of_bits = {} if bits is None else {"bits": bits}
        return self.head.draw_token(logits_of, position, settings, draw, numbers, batch, **of_bits)

    def completed_bits(self, bits: BitDrawing | None) -> BitDrawing:
        return self.head.completed_bits(bits)

    def num_draws_of_bits(self, bits: BitDrawing) -> int:
        return self.head.num_draws_of_bits(self.num_tokens, bits)

    # ---------------------------------------------------------------------------------------- token by token
    def functional_step(self) -> FunctionalStep | None:
        """None for a head whose draws are no distribution over codes, which another program could not make."""
        return FunctionalStep(self) if self.head.draws_by_index else None

    def functional_head(self) -> FunctionalHead | None:
        return FunctionalHead(self) if self.head.draws_by_index and len(self.codebook_sizes) > 1 else None

    def step_functions(self, order: Tensor | None = None) -> StepFunctions:
        return StepFunctions(
            hidden=self.decode_hidden if order is None else partial(self.decode_hidden, order=order),
            logits=self.head.next_logits,
            new_cache=self.new_cache,
            new_head_cache=lambda rows: self.head.new_cache(rows, self.dtype, self.device),
        )

    def decode_hidden(self, inputs: Tensor, position: Position, cache: KVCache, order: Tensor | None = None) -> Tensor:
        """What the head reads (B,C) at `position`. `inputs`: class labels (B,) at the number 0, else the token before.

        A position that is a tensor is never 0. An `order` (N,) says which cell each position predicts.
        """
        is_first = isinstance(position, int) and position == 0
        embedded = self.class_embedding(inputs) if is_first else self.head.embed(inputs)
        return self.decode_embedded(embedded, position, cache, order)

    def decode_embedded(
        self, embedded: Tensor, position: Position, cache: KVCache, order: Tensor | None = None
    ) -> Tensor:
        """As `decode_hidden`, with the embedding (B,C) of the input. The position may be any tensor, also of 0."""
        x = embedded[:, None]
        row, cell = decoding_rows(order, position)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[row]
        if self.target_embedding is not None:
            x = x + self.target_embedding[cell]
        return self.decode_layers(x, self.rope.row(row, x.device), position, cache)[:, 0]

    def decode_layers(self, x: Tensor, rope: Tensor | None, position: Position, cache: KVCache) -> Tensor:
        """One input (B,1,C) through all layers, to what the head reads (B,1,C)."""
        for layer, cached in zip(self.layers, cache.step(position), strict=True):
            x = layer(x, rope, cached)
        return x

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache for `decode_hidden`."""
        width, layers, heads = self.config.dims()
        return KVCache.empty(
            layers, batch_size, heads, self.num_tokens, width // heads, dtype=self.dtype, device=self.device
        )

    def cache_of(self, keys: Tensor, values: Tensor, labels: Tensor) -> KVCache:
        """A cache of given keys and values, for images of the classes `labels` (B,)."""
        return KVCache(keys, values)

    # ---------------------------------------------------------------------------------------- tables of positions
    @torch.no_grad()
    def with_merged_positions(self) -> GPT:
        """The same network for the raster order alone, with one table of positions: the sum of both.

        It computes the same raster logits, up to rounding. Raises ConfigError without two learned tables.
        """
        if self.positional_embedding is None or self.target_embedding is None:
            raise ConfigError("only positions=learned with target_positions=true has two tables to merge")
        merged = type(self)(replace(self.config, target_positions=False, order=OrderConfig()))
        state = self.state_dict()
        targets = state.pop("target_embedding")
        state["positional_embedding"] = state["positional_embedding"].clone()
        state["positional_embedding"][: len(targets)] += targets  # the last row is of a token that is no input
        merged.load_state_dict(state)
        return merged.to(self.device, self.dtype).train(self.training)


def _all_choices(
    choices: tuple[Callable[[np.random.Generator], dict[str, Tensor]], ...], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Draws several kinds of choices of one sample, in turn."""
    return {name: value for choice in choices for name, value in choice(rng).items()}
