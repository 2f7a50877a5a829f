"""The GPT of GigaTok, LlamaGen and WeTok: a Llama-style decoder over image tokens, conditioned on a class.

arXiv:2406.06525, section 3.2. The sequence is [class, token 0, ..., token N-2]; position p predicts token p. RMSNorm
before attention and SwiGLU, no biases, no weight tying. Positions are a learned table (GigaTok), or 2D rotary on a
square grid of tokens (LlamaGen, WeTok). Tokens are read and written by a head (`autoregressive.models.heads`).

Shapes    labels (B,) int64, `num_classes` is the null class      tokens (B,N) int64      logits (B,N,V) float32
          with k indices per token: tokens (B,N,k) and logits (B,N,k,V)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.models.base import DataSizes, Generator
from autoregressive.models.decode_steps import DecodeSteps, RecordedStepsByRows, StaticSteps, StepFunctions, Steps
from autoregressive.models.functional_steps import FunctionalHead, FunctionalStep
from autoregressive.models.heads import HEADS, HeadSettings, default_head
from autoregressive.models.kv_cache import KVCache, Position
from autoregressive.models.layers import Layer
from autoregressive.models.rope import NoRope, Rope2D
from autoregressive.sampling import DecodingSettings, Draw, IndexSettings, PerIndex, probabilities
from engine.devices import is_gpu
from engine.finite import spread_nan
from engine.flops import TRAINED, PartFlops
from engine.messages import ConfigError
from engine.validation import Problem, Section, at_least, in_range, one_of

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

    size: str | None = None  # b | l | xl | xxl | 3b
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    vocab_size: int | None = None  # codes of a token with one index; null: as many as data.codes has (else 16384)
    codebook_sizes: list[int] = field(default_factory=list)  # codes of each index of a token; empty = vocab_size
    head: str | None = None  # plain | factorized; null: plain for one index per token, factorized for several
    head_layers: int = 2  # factorized head: layers of its transformer over the indices of a token
    num_tokens: int | None = None  # tokens per image; null: as many as data.codes has (else 256)
    num_classes: int | None = None  # null: as many as data.codes has (else 1000)
    positions: Literal["learned", "rope2d"] = "learned"  # rope2d: num_tokens is a square grid, row-major
    qk_norm: bool = False  # layer norm of queries and keys of each head; no published model has it
    class_dropout_prob: float = 0.1  # training: fraction of labels replaced by the null class
    token_dropout: float = 0.1  # training: after the embeddings
    residual_dropout: float = 0.1  # training: after attention and after the MLP

    def problems(self) -> Iterator[Problem]:
        yield from self._size_problems()
        for name in ("vocab_size", "head_layers", "num_tokens", "num_classes"):
            if getattr(self, name) is not None:
                yield from at_least(self, name, 1)
        for name in ("class_dropout_prob", "token_dropout", "residual_dropout"):
            yield from in_range(self, name, 0, 1)
        yield from self._head_problems()
        if self.positions == "rope2d" and self.num_tokens is not None and self.num_tokens >= 1:
            yield from self._rope_problems()

    def _size_problems(self) -> Iterator[Problem]:
        sizes = {name: getattr(self, name) for name in ("width", "layers", "heads")}
        explicit_names = [name for name, value in sizes.items() if value is not None]
        if self.size is not None:
            if explicit_names:
                yield Problem("size", self.size, f"null where {', '.join(explicit_names)} is given")
            else:
                yield from one_of(self, "size", SIZES)
            return

        # Nothing at all is the section of a model that is not in use; `dims` refuses to build it.
        if not explicit_names:
            return
        for name, value in sizes.items():
            if value is None:
                yield Problem(name, None, f"given with {', '.join(explicit_names)}, where there is no size")
            else:
                yield from at_least(self, name, 1)
        if len(explicit_names) == len(sizes) and min(sizes.values()) >= 1:
            multiple = self._width_multiple(self.heads)
            if self.width % multiple:
                reason = f"heads={self.heads} and positions={self.positions}"
                yield Problem("width", self.width, f"divisible by {multiple} with {reason}")

    def _head_problems(self) -> Iterator[Problem]:
        if min(self.codebook_sizes, default=1) < 1:
            yield Problem("codebook_sizes", self.codebook_sizes, "numbers of 1 or more")
        if self.head is None:
            return
        yield from one_of(self, "head", HEADS)
        max_indices = HEADS[self.head].max_indices if self.head in HEADS else None
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
        if self.size is not None:
            return SIZES[self.size]
        if self.width is None:
            raise ConfigError(f"model.gpt: give size (one of {', '.join(SIZES)}) or width, layers and heads")
        return self.width, self.layers, self.heads


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross entropy in nats, mean over all tokens, summed over the indices of a token.

    Logits (B,N,V) and tokens (B,N), or (B,N,k,V) and (B,N,k).
    """
    num_indices = tokens.shape[2] if tokens.ndim == 3 else 1
    return num_indices * F.cross_entropy(logits.flatten(0, -2), tokens.flatten())


class GPT(Generator):
    """See the module docstring, and `Generator` for what is asked of it."""

    config_class = GPTConfig
    in_words = "autoregressive transformer"

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
        self._recorded_steps: RecordedStepsByRows | None = None

        # Do not reorder: the order fixes random initialization and optimizer state.
        self.rope = Rope2D(math.isqrt(self.num_tokens), width // heads) if config.positions == "rope2d" else NoRope()
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)

        # What reads and writes tokens.
        head_settings = HeadSettings(
            codebook_sizes=config.index_sizes,
            width=width,
            heads=heads,
            layers=config.head_layers,
            dropout=config.residual_dropout,
            qk_norm=config.qk_norm,
            rope=self.rope,
        )
        self.head = HEADS[config.head_name](head_settings)
        self.head.add_input(self)

        # Positions and layers.
        self.positional_embedding = None
        if config.positions == "learned":
            self.positional_embedding = nn.Parameter(torch.randn(config.num_tokens + 1, width) * width**-0.5)
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Layer(width, heads, config.residual_dropout, config.qk_norm) for _ in range(layers))
        self.head.add_output(self)

        # Initial values.
        self.apply(self._init)
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

    def layout_layers(self) -> list[nn.Linear]:
        return [module for module in self.modules() if isinstance(module, nn.Linear)]

    # ---------------------------------------------------------------------------------------- all tokens at once
    def forward(self, labels: Tensor, tokens: Tensor, drop: Tensor | None = None) -> Tensor:
        """Teacher-forced logits of all tokens. Rows where `drop` (B,) is true lose their class."""
        if drop is not None:
            labels = torch.where(drop, self.null_class, labels)
        return self.head.logits(self.features(labels, tokens, self.num_layers), tokens)

    def features(self, labels: Tensor, tokens: Tensor, layer: int) -> Tensor:
        """Hidden states (B,N,C) after layer number `layer`, counted from 1, without the final norm."""
        x = self.embed(labels, tokens[:, :-1])
        rope = self.rope.rows(0, x.shape[1], x.device)
        for block in self.layers[:layer]:
            x = block(x, rope)
        return x

    def embed(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """[class, tokens], with learned positions where the model has them: (B,), (B,n) -> (B,n+1,C)."""
        x = torch.cat([self.class_embedding(labels)[:, None], self.head.embed(tokens)], dim=1)
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[: x.shape[1]]
        return self.token_dropout(x)

    def loss(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """`next_token_loss` of the logits of `forward`."""
        return next_token_loss(outputs, tokens)

    def training_flops(self) -> tuple[PartFlops, ...] | None:
        head = self.head.flops(self.num_tokens)
        if head is None:
            return None
        layers = TRAINED * sum(layer.flops(self.num_tokens) for layer in self.layers)
        return PartFlops("layers", "matrix", layers, recomputed=True), PartFlops("head", "matrix", TRAINED * head)

    # ---------------------------------------------------------------------------------------- token by token
    @torch.inference_mode()
    def sample(
        self,
        labels: Tensor,
        *,
        draw: Draw,
        guidance: Guidance = UNGUIDED,
        temperature: PerIndex[float] = 1.0,
        top_k: PerIndex[int] = 0,
        top_p: PerIndex[float] = 1.0,
    ) -> Tensor:
        """Tokens (B,N) or (B,N,k) for class `labels` (B,); see `Generator.sample`.

        With guidance the batch is doubled, conditional rows first; as soon as no later token needs them, the
        unconditional rows are dropped.
        """
        assert not self.training, "sampling needs evaluation mode: call eval() first"
        batch = len(labels)
        settings = DecodingSettings(
            self.num_tokens,
            len(self.codebook_sizes),
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

        # The first input is the class. Unconditional rows follow where any token is guided.
        inputs = labels
        if settings.num_guided > 0:
            inputs = torch.cat([labels, torch.full_like(labels, self.null_class)])
        steps = self.decode_steps(len(inputs))

        tokens = []
        for position in range(self.num_tokens):
            if position == settings.num_guided and len(inputs) > batch:
                inputs = inputs[:batch]
                steps = steps.keep_rows(batch)

            # Both halves of a guided batch go on with the same token.
            token = self.next_token(steps, inputs, position, settings.at(position), draw, batch)
            tokens.append(token)
            inputs = torch.cat([token] * (len(inputs) // batch))
        return torch.stack(tokens, dim=1)

    def next_token(
        self, steps: Steps, inputs: Tensor, position: int, settings: list[IndexSettings], draw: Draw, batch: int
    ) -> Tensor:
        """One decode step: draws the indices of the token at `position`, one after the other: (batch,) or (batch,k).

        `inputs` are class labels at position 0, then the tokens before: `batch` conditional rows, and as many
        unconditional ones after them where the token is guided.
        """
        hidden = steps.hidden(inputs, position)
        previous_index = None
        indices = []
        for number, options in enumerate(settings):
            logits = steps.logits(hidden, previous_index, number)
            guided = logits[:batch]
            if options.guidance_scale != 1:
                unconditional = logits[batch:]
                guided = unconditional + (guided - unconditional) * options.guidance_scale

            # A logit of -inf is no impossible code here: it overflowed, and the draw must see that.
            p = probabilities(spread_nan(guided), options.temperature, options.top_k, options.top_p)
            index = draw(p, position * len(settings) + number)
            indices.append(index)
            previous_index = torch.cat([index] * (len(hidden) // batch))
        return torch.stack(indices, dim=-1).reshape(batch, *self.token_shape[1:])

    def decode_steps(self, rows: int) -> Steps:
        """The steps of a new batch of `rows` rows: attention over what is filled on a CPU, static shapes on a GPU."""
        if not is_gpu(self.device):
            return DecodeSteps(self._step_functions(), rows)
        if not self.record_steps:
            return StaticSteps(self._step_functions(), rows)
        if self._recorded_steps is None:
            self._recorded_steps = RecordedStepsByRows(self._step_functions())
        return self._recorded_steps.of(rows)

    def functional_step(self) -> FunctionalStep:
        return FunctionalStep(self)

    def functional_head(self) -> FunctionalHead | None:
        return FunctionalHead(self) if len(self.codebook_sizes) > 1 else None

    def _step_functions(self) -> StepFunctions:
        return StepFunctions(
            hidden=self.decode_hidden,
            logits=self.head.next_logits,
            new_cache=self.new_cache,
            new_head_cache=lambda rows: self.head.new_cache(rows, self.dtype, self.device),
        )

    def decode_hidden(self, inputs: Tensor, position: Position, cache: KVCache) -> Tensor:
        """Hidden state (B,C) at `position`. `inputs`: class labels (B,) at the number 0, else the token before.

        A position that is a tensor is never 0.
        """
        is_first = isinstance(position, int) and position == 0
        embedded = self.class_embedding(inputs) if is_first else self.head.embed(inputs)
        return self.decode_embedded(embedded, position, cache)

    def decode_embedded(self, embedded: Tensor, position: Position, cache: KVCache) -> Tensor:
        """As `decode_hidden`, with the embedding (B,C) of the input. The position may be any tensor, also of 0."""
        x = embedded[:, None]
        if self.positional_embedding is not None:
            x = x + self.positional_embedding[position]

        rope = self.rope.row(position, x.device)
        for layer, cached in zip(self.layers, cache.step(position), strict=True):
            x = layer(x, rope, cached)
        return x[:, 0]

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache for `decode_hidden`."""
        width, layers, heads = self.config.dims()
        return KVCache.empty(
            layers, batch_size, heads, self.num_tokens, width // heads, dtype=self.dtype, device=self.device
        )
