"""The network of RAR (arXiv:2411.00776): a transformer that predicts the tokens of an image in any order.

The chain is [cls, class, token(o_0), ..., token(o_{N-2})] for an order o of the cells, raster or another. Place 1 + p
predicts the token of cell o_p. With tables `positions` and `targets`, whose row 2 + c is that of cell c:

    input 0        cls + positions[0]
    input 1        class + positions[1] + targets[2 + o_0]
    input 2 + p    token(o_p) + positions[2 + o_p] + targets[2 + o_{p+1}]

Each layer and the last norm are modulated by the class and the place (AdaLN), c_p = class + steps[p], and gates are
taken as they are, without 1 +:

    (b1, s1, g1, b2, s2, g2) = W SiLU(c_p) + b
    x <- x + g1 * Attention(LN(x) * (1 + s1) + b1),   x <- x + g2 * MLP(LN(x) * (1 + s2) + b2)
    logits = output(LN(x) * (1 + s) + b),             (s, b) = W' SiLU(c_p) + b'

One table embeds V tokens, a mask that RAR never uses, the classes and the null class. All layers have biases; queries
and keys of each head are normed; the GELU is exact. Tables have the rows of the released files, also those that no cell
needs.

Shapes    labels (B,) int64, `num_classes` is the null class      tokens (B,N) int64      logits (B,N,V) float32
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.models.base import DataSizes
from autoregressive.models.conditioned_cache import ConditionedCache
from autoregressive.models.decode_steps import StepFunctions
from autoregressive.models.gpt import DEFAULT_SIZES
from autoregressive.models.kv_cache import KVCache, LayerStep, Position
from autoregressive.models.named_sizes import chosen_size, head_problems, size_problems
from autoregressive.models.random_order import OrderConfig, in_order, in_raster
from autoregressive.models.token_by_token import TokenByToken, decoding_rows
from engine.flops import TRAINED, PartFlops, attention_flops, linear_flops
from engine.messages import ConfigError
from engine.validation import Problem, Section, at_least, in_range

NUMBERS = ("width", "layers", "heads", "mlp_width")  # keys of a size
SIZES = {  # width, layers, heads, width of the MLP
    "b": (768, 24, 16, 3072),
    "l": (1024, 24, 16, 4096),
    "xl": (1280, 32, 16, 5120),
    "xxl": (1408, 40, 16, 6144),
}
NORM_EPS = 1e-6
INIT_STD = 0.02
SPARE_POSITIONS, SPARE_STEPS = 1024, 100  # rows of the released tables beyond the tokens of an image
PREFIX = 2  # inputs before the first token: cls and the class


@dataclass(kw_only=True, slots=True)
class RARConfig(Section):
    """A published size, or width, layers, heads and mlp_width; and the tokens and classes that it is for."""

    SIZES: ClassVar[Mapping[str, tuple[int, int, int, int]]] = SIZES

    size: str | None = None  # b | l | xl | xxl
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    mlp_width: int | None = None
    vocab_size: int | None = None  # null: as many as data.codes has
    num_tokens: int | None = None  # tokens per image; null: as many as data.codes has
    num_classes: int | None = None  # null: as many as data.codes has
    target_positions: bool = True  # false: for raster alone, with one table of positions
    order: OrderConfig = field(default_factory=OrderConfig)  # training: random orders of prediction
    class_dropout_prob: float = 0.1  # training: fraction of labels replaced by the null class
    dropout: float = 0.1  # training: after attention and in the MLP
    attention_dropout: float = 0.1  # training: of the weights of attention

    def problems(self) -> Iterator[Problem]:
        yield from size_problems(self, NUMBERS)
        yield from head_problems(self, NUMBERS)
        for name in ("vocab_size", "num_tokens", "num_classes"):
            if getattr(self, name) is not None:
                yield from at_least(self, name, 1)
        for name in ("class_dropout_prob", "dropout", "attention_dropout"):
            yield from in_range(self, name, 0, 1)
        if self.order.is_random and not self.target_positions:
            yield Problem("target_positions", False, "true with random orders (order.random_end above 0)")

    def completed(self, sizes: DataSizes) -> RARConfig:
        """The section with what it leaves open as in `sizes`. Raises ConfigError for tokens of several indices."""
        return replace(
            self,
            vocab_size=sizes.single_codebook_size() if self.vocab_size is None else self.vocab_size,
            num_tokens=sizes.num_tokens if self.num_tokens is None else self.num_tokens,
            num_classes=sizes.num_classes if self.num_classes is None else self.num_classes,
        )

    def dims(self) -> tuple[int, int, int, int]:
        """(width, layers, heads, mlp_width). Raises ConfigError where neither they nor a size are given."""
        return chosen_size(self, NUMBERS, "model.rar")


class RARAttention(nn.Module):
    """Causal self-attention with biases, and norms of the queries and keys of each head."""

    def __init__(self, width: int, heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads, eps=NORM_EPS)
        self.k_norm = nn.LayerNorm(width // heads, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cached: LayerStep | None = None) -> Tensor:
        """x (B,n,C). With `cached`, x is the one input that is decoded."""
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = self.q_norm(q), self.k_norm(k)

        # The one input of a cached step may see all that is stored; else each sees those up to itself.
        mask = None
        if cached is not None:
            k, v = cached.extend(k, v)
            mask = cached.mask
        dropout = self.attention_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=cached is None)
        return self.dropout(self.proj(out.transpose(1, 2).flatten(2)))


class RARLayer(nn.Module):
    """One layer; see the module docstring."""

    parallel_unit = "shard"

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = RARAttention(width, heads, dropout, attention_dropout)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor, cached: LayerStep | None = None) -> Tensor:
        """x (B,n,C), with the class and the place of each input in `condition` (B,n,C)."""
        modulation = self.modulation(F.silu(condition))
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.chunk(6, dim=-1)
        x = x + gate_1 * self.attention(self.norm1(x) * (1 + scale_1) + shift_1, cached)
        return x + gate_2 * self._mlp(self.norm2(x) * (1 + scale_2) + shift_2)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))

    def flops(self, length: int) -> int:
        """Operations on one sequence (engine/flops.py)."""
        linears = (self.attention.qkv, self.attention.proj, self.fc1, self.fc2, self.modulation)
        width = self.fc1.in_features
        return sum(linear_flops(linear, length) for linear in linears) + attention_flops(length, length, width)


class RAR(TokenByToken):
    """See the module docstring, and `Generator` for what is asked of it."""

    config_class = RARConfig
    in_words = "autoregressive transformer for any order of tokens"

    def __init__(self, config: RARConfig) -> None:
        super().__init__()
        config = config.completed(DEFAULT_SIZES)
        width, layers, heads, mlp_width = config.dims()
        self.config = config
        self.num_classes = config.num_classes
        self.num_tokens = config.num_tokens
        self.num_layers = layers
        self.codebook_sizes = (config.vocab_size,)
        self.class_dropout_prob = config.class_dropout_prob
        self.order = config.order
        self.has_target_positions = config.target_positions

        # Do not reorder: the order fixes random initialization and optimizer state.
        positions = config.num_tokens + SPARE_POSITIONS
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, positions, width))
        self.targets = nn.Parameter(torch.empty(1, positions, width)) if config.target_positions else None
        self.steps = nn.Parameter(torch.empty(1, config.num_tokens + SPARE_STEPS, width))
        self.embedding = nn.Embedding(config.vocab_size + 1 + config.num_classes + 1, width)
        self.layers = nn.ModuleList(
            RARLayer(width, heads, mlp_width, config.dropout, config.attention_dropout) for _ in range(layers)
        )
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, config.vocab_size)
        self._init()

    def _init(self) -> None:
        """Truncated normal weights, no biases; AdaLN starts at zero, so that each layer starts as the identity."""
        for parameter in (self.cls, self.positions, self.targets, self.steps):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for modulation in (self.final_modulation, *(layer.modulation for layer in self.layers)):
            nn.init.zeros_(modulation.weight)

    @classmethod
    def completed(cls, section: RARConfig, sizes: DataSizes) -> RARConfig:
        return section.completed(sizes)

    @property
    def passes_per_image(self) -> int:
        """One more than tokens: the first is that of the learned start."""
        return 1 + self.num_tokens

    def layout_layers(self) -> list[nn.Linear]:
        return [module for module in self.modules() if isinstance(module, nn.Linear)]

    # ---------------------------------------------------------------------------------------- all tokens at once
    def forward(
        self, labels: Tensor, tokens: Tensor, drop: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced logits of all tokens, in raster. Rows where `drop` (B,) is true lose their class.

        Tokens are predicted in `order` (B,N); in raster without it.
        """
        if drop is not None:
            labels = torch.where(drop, self.null_class, labels)
        hidden = self.features(labels, tokens, self.num_layers, order)
        logits = self._logits(hidden, self._conditions(labels, 1, self.num_tokens))
        return logits if order is None else in_raster(logits, order)

    def features(self, labels: Tensor, tokens: Tensor, layer: int, order: Tensor | None = None) -> Tensor:
        """Hidden states (B,N,C) of the places that predict tokens after layer number `layer`, without the last norm."""
        if order is None:
            cells = torch.arange(self.num_tokens, device=tokens.device).expand_as(tokens)
        else:
            cells, tokens = order, in_order(tokens, order)

        # The inputs: what is known, where it lies, and which cell comes next.
        batch = len(labels)
        known = torch.cat([self._class_rows(labels)[:, None], self.embedding(tokens[:, :-1])], dim=1)
        x = known + self._position_rows(cells[:, :-1])
        if self.targets is not None:
            x = x + F.embedding(cells + PREFIX, self.targets[0])
        first = self.cls.expand(batch, -1, -1) + self.positions[:, :1]
        x = torch.cat([first, x], dim=1)

        condition = self._conditions(labels, 0, self.num_tokens + 1)
        for block in self.layers[:layer]:
            x = block(x, condition)
        return x[:, 1:]

    def _class_rows(self, labels: Tensor) -> Tensor:
        """The embeddings (B,C) of classes."""
        return self.embedding(labels + self.codebook_sizes[0] + 1)

    def _position_rows(self, cells: Tensor) -> Tensor:
        """The positions of the class and of tokens in `cells` (B,n): (B,n+1,C)."""
        of_class = cells.new_ones(len(cells), 1)
        return F.embedding(torch.cat([of_class, cells + PREFIX], dim=1), self.positions[0])

    def _conditions(self, labels: Tensor, first: int, count: int) -> Tensor:
        """What modulates `count` places from `first` on, (B,count,C)."""
        return self._class_rows(labels)[:, None] + self.steps[:, first : first + count]

    def _logits(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """Hidden states (B,n,C) -> logits (B,n,V) float32."""
        scale, shift = self.final_modulation(F.silu(condition)).chunk(2, dim=-1)
        return self.output(self.final_norm(hidden) * (1 + scale) + shift).float()

    def training_flops(self) -> tuple[PartFlops, ...]:
        layers = TRAINED * sum(layer.flops(self.num_tokens + 1) for layer in self.layers)
        head = TRAINED * sum(linear_flops(linear, self.num_tokens) for linear in (self.final_modulation, self.output))
        return PartFlops("layers", "matrix", layers, recomputed=True), PartFlops("head", "matrix", head)

    # ---------------------------------------------------------------------------------------- token by token
    def step_functions(self, order: Tensor | None = None) -> StepFunctions:
        return StepFunctions(
            hidden=partial(self.decode_hidden, order=order),
            logits=lambda hidden, previous_index, number, cache: hidden,
            new_cache=self.new_cache,
            new_head_cache=lambda rows: KVCache.empty(0, rows, 1, 1, 1, dtype=self.dtype, device=self.device),
        )

    def decode_hidden(
        self, inputs: Tensor, position: Position, cache: ConditionedCache, order: Tensor | None = None
    ) -> Tensor:
        """Logits (B,V) of the token at `position`. `inputs`: class labels (B,) at the number 0, else the token before.

        A position that is a tensor is never 0. An `order` (N,) says which cell each position predicts.
        """
        row, cell = decoding_rows(order, position)
        if isinstance(position, int) and position == 0:
            known = self._class_rows(inputs)
            cache.remember([known])
            self._decode(self.cls[:, 0] + self.positions[:, 0], 0, cache)
        else:
            known = self.embedding(inputs)

        # Input `position` + 1 of the chain: row 1 of the positions is that of the class, and cells follow.
        x = known + self.positions[0, row + 1]
        if self.targets is not None:
            x = x + self.targets[0, cell + PREFIX]
        hidden, condition = self._decode(x, position + 1, cache)
        return self._logits(hidden, condition)[:, 0]

    def _decode(self, x: Tensor, place: Position, cache: ConditionedCache) -> tuple[Tensor, Tensor]:
        """One input (B,C), or (1,C) for all, at a place of the chain: hidden state and condition, (B,1,C) each."""
        (classes,) = cache.conditions
        condition = (classes + self.steps[0, place])[:, None]
        hidden = x.expand_as(classes)[:, None]
        for layer, cached in zip(self.layers, cache.step(place), strict=True):
            hidden = layer(hidden, condition, cached)
        return hidden, condition

    def new_cache(self, batch_size: int) -> ConditionedCache:
        """An empty cache for `decode_hidden`: keys and values of cls, the class and all tokens but the last."""
        width, layers, heads, _ = self.config.dims()
        cache = KVCache.empty(
            layers, batch_size, heads, self.num_tokens + 1, width // heads, dtype=self.dtype, device=self.device
        )
        classes = torch.zeros(batch_size, width, dtype=self.dtype, device=self.device)
        return ConditionedCache(cache.keys, cache.values, (classes,))

    # ---------------------------------------------------------------------------------------- tables of positions
    @torch.no_grad()
    def with_merged_positions(self) -> RAR:
        """The same network for the raster order alone, with one table of positions: the sum of both.

        It computes the same raster logits, up to rounding. Raises ConfigError where there is one table only.
        """
        if self.targets is None:
            raise ConfigError("only a generator with target_positions=true has two tables to merge")
        merged = type(self)(replace(self.config, target_positions=False, order=OrderConfig()))
        state = self.state_dict()
        targets = state.pop("targets")
        state["positions"] = state["positions"].clone()
        # The class and all tokens but the last, which is no input, are followed by the next cell.
        count = self.num_tokens
        state["positions"][:, 1 : 1 + count] += targets[:, PREFIX : PREFIX + count]
        merged.load_state_dict(state)
        return merged.to(self.device, self.dtype).train(self.training)
