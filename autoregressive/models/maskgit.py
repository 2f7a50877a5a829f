"""The masked generator (MaskGIT, arXiv:2202.04200): a transformer that sees all tokens at once, some of them masked.

The sequence is [class, token 0, ..., token N-1], without a causal mask. A slot is one index of one token. Each slot is
known or masked, and the network predicts the masked ones from the class and all known ones. The layers are those of
the GPT (RMSNorm before attention and SwiGLU, no biases); the published networks are post-norm BERTs with biases, whose
files do not fit. A token of k indices is read by k embedding tables, summed, each with a row that stands for "masked",
and written by k outputs: given the hidden states, all slots of a pass are independent.

Images are drawn in passes (`autoregressive.passes`): every pass draws all masked slots and keeps those that the network
trusts most. Or one slot after the other, in any order of the cells.

Shapes    labels (B,) int64, `num_classes` is the null class      tokens (B,N) int64, or (B,N,k)
          masks as tokens, or (B,N,k), bool                       logits (B,N,k,V) float32, -inf beyond an index's codes
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.models.base import DataSizes, Generator
from autoregressive.models.gpt import DEFAULT_SIZES
from autoregressive.models.layers import Layer, RMSNorm
from autoregressive.models.named_sizes import chosen_size, is_given_in_numbers, size_problems
from autoregressive.models.random_masks import HELD_OUT_PASSES, draw_mask, expected_share, held_out_masks
from autoregressive.models.random_order import require_order
from autoregressive.models.rope import NoRope, Rope2D
from autoregressive.passes import MASK_SCHEDULES, Passes
from autoregressive.sampling import (
    DecodingSettings,
    Draw,
    IndexSettings,
    Numbers,
    PerIndex,
    guided_logits,
    gumbel,
    least,
    probabilities,
)
from engine.finite import spread_nan
from engine.flops import TRAINED, PartFlops, linear_flops
from engine.validation import Problem, Section, at_least, in_range, one_of

NUMBERS = ("width", "layers", "heads")  # keys of a size
SIZES = {  # width, layers, heads
    "b": (768, 24, 16),  # the width and depth of the published networks
    "l": (1024, 24, 16),
}
INIT_STD = 0.02


@dataclass(kw_only=True, slots=True)
class MaskGITConfig(Section):
    """A named size, or width, layers and heads; the tokens and classes that it is for; and how masks are drawn."""

    SIZES: ClassVar[Mapping[str, tuple[int, int, int]]] = SIZES

    size: str | None = None  # b | l
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    codebook_sizes: list[int] = field(default_factory=list)  # codes of each index of a token; empty: as data.codes has
    num_tokens: int | None = None  # tokens per image; null: as many as data.codes has (else 256)
    num_classes: int | None = None  # null: as many as data.codes has (else 1000)
    positions: Literal["learned", "rope2d"] = "learned"  # rope2d: num_tokens is a square grid, row-major
    qk_norm: bool = False  # layer norm of queries and keys of each head
    mask_schedule: str = "cosine"  # training: share of masked indices, cosine | arccos | linear; also of sampling
    visible_weight: float = 0.0  # training: weight of the loss of indices that are not masked; TiTok: 0.1
    label_smoothing: float = 0.1  # training: share of the target that is spread evenly over all codes
    class_dropout_prob: float = 0.1  # training: fraction of labels replaced by the null class
    token_dropout: float = 0.1  # training: after the embeddings
    residual_dropout: float = 0.1  # training: after attention and after the MLP

    def problems(self) -> Iterator[Problem]:
        # The network.
        yield from size_problems(self, NUMBERS)
        multiple = self.heads * 4 if self.positions == "rope2d" and self.heads else self.heads
        if is_given_in_numbers(self, NUMBERS) and self.width % multiple:
            reason = f"heads={self.heads} and positions={self.positions}"
            yield Problem("width", self.width, f"divisible by {multiple} with {reason}")

        # Tokens and classes.
        for name in ("num_tokens", "num_classes"):
            if getattr(self, name) is not None:
                yield from at_least(self, name, 1)
        if min(self.codebook_sizes, default=1) < 1:
            yield Problem("codebook_sizes", self.codebook_sizes, "numbers of 1 or more")
        tokens = self.num_tokens
        if self.positions == "rope2d" and tokens is not None and math.isqrt(max(tokens, 0)) ** 2 != tokens:
            yield Problem("num_tokens", tokens, "a square number with positions=rope2d")

        # How it is trained.
        yield from one_of(self, "mask_schedule", MASK_SCHEDULES)
        for name in ("visible_weight", "class_dropout_prob", "token_dropout", "residual_dropout"):
            yield from in_range(self, name, 0, 1)
        yield from in_range(self, "label_smoothing", 0, 1, open_right=True)

    def completed(self, sizes: DataSizes) -> MaskGITConfig:
        """The section with what it leaves open as in `sizes`."""
        return replace(
            self,
            codebook_sizes=list(self.codebook_sizes or sizes.codebook_sizes),
            num_tokens=sizes.num_tokens if self.num_tokens is None else self.num_tokens,
            num_classes=sizes.num_classes if self.num_classes is None else self.num_classes,
        )

    def dims(self) -> tuple[int, int, int]:
        """(width, layers, heads). Raises ConfigError where neither they nor a size are given."""
        return chosen_size(self, NUMBERS, "model.maskgit")


class MaskedOutputs(NamedTuple):
    """What `MaskGIT.forward` gives, and its losses take."""

    logits: Tensor  # (B,N,k,V) float32; -inf beyond the codes of an index
    mask: Tensor  # (B,N,k) bool: which slots were masked


class MaskGIT(Generator):
    """See the module docstring, and `Generator` for what is asked of it."""

    config_class = MaskGITConfig
    in_words = "masked transformer, which draws an image in a few passes"
    any_order = True
    in_passes = True
    held_out_loss = "loss_bound"  # never beside a likelihood by the chain rule
    held_out_facts: ClassVar[Mapping[str, Any]] = {
        "likelihood": f"upper bound over random orders, {HELD_OUT_PASSES} masks per image"
    }

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        config = config.completed(DEFAULT_SIZES)
        width, layers, heads = config.dims()
        self.config = config
        self.num_classes = config.num_classes
        self.num_tokens = config.num_tokens
        self.num_layers = layers
        self.codebook_sizes = tuple(config.codebook_sizes)
        self.class_dropout_prob = config.class_dropout_prob

        # The mean weight of a slot in training: what is divided by, in the place of the sum of weights of a batch.
        share = expected_share(self.slots, config.mask_schedule)
        self.mean_weight = share + config.visible_weight * (1 - share)

        # Do not reorder: the order fixes random initialization and optimizer state.
        self.rope = Rope2D(math.isqrt(self.num_tokens), width // heads) if config.positions == "rope2d" else NoRope()
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.tables = nn.ModuleList(nn.Embedding(size + 1, width) for size in self.codebook_sizes)  # the last is masked
        self.positions = None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(self.num_tokens + 1, width))
        self.token_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(
            Layer(width, heads, config.residual_dropout, config.qk_norm, is_causal=False) for _ in range(layers)
        )
        self.norm = RMSNorm(width)
        self.outputs = nn.ModuleList(nn.Linear(width, size, bias=False) for size in self.codebook_sizes)
        self._init()

    def _init(self) -> None:
        """Normal weights; outputs of zero, so that every code is equally likely at first."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=INIT_STD)
        for output in self.outputs:
            nn.init.zeros_(output.weight)

    @classmethod
    def completed(cls, section: MaskGITConfig, sizes: DataSizes) -> MaskGITConfig:
        return section.completed(sizes)

    @property
    def slots(self) -> int:
        """Indices of an image."""
        return math.prod(self.token_shape)

    def layout_layers(self) -> list[nn.Linear]:
        return [module for module in self.modules() if isinstance(module, nn.Linear)]

    # ---------------------------------------------------------------------------------------- the network
    def forward(
        self, labels: Tensor, tokens: Tensor, drop: Tensor | None = None, mask: Tensor | None = None
    ) -> MaskedOutputs:
        """Logits of all slots, of which those in `mask` are hidden; all of them without a mask.

        Rows where `drop` (B,) is true lose their class.
        """
        if drop is not None:
            labels = torch.where(drop, self.null_class, labels)
        indices = self._by_slot(tokens)
        is_masked = torch.ones_like(indices, dtype=torch.bool) if mask is None else self._by_slot(mask)
        hidden = self._hidden(labels, indices, is_masked, self.num_layers)[:, 1:]
        logits = self._index_logits(hidden)

        # Pad all to the largest codebook, with logits of impossible codes.
        widest = max(self.codebook_sizes)
        padded = [F.pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in logits]
        return MaskedOutputs(torch.stack(padded, dim=2), is_masked)

    def features(self, labels: Tensor, tokens: Tensor, layer: int) -> Tensor:
        """Hidden states (B,N,C) of the tokens after layer number `layer`, from 1; no token is masked."""
        indices = self._by_slot(tokens)
        return self._hidden(labels, indices, torch.zeros_like(indices, dtype=torch.bool), layer)[:, 1:]

    def _by_slot(self, values: Tensor) -> Tensor:
        """Tokens or masks of one index per token (B,N) -> (B,N,1); others (B,N,k) as they are."""
        return values.reshape(values.shape[0], self.num_tokens, len(self.codebook_sizes))

    def _hidden(self, labels: Tensor, indices: Tensor, is_masked: Tensor, layer: int) -> Tensor:
        """States (B,1+N,C) after the first `layer` layers: of the class, then of the tokens."""
        columns = zip(self.tables, self.codebook_sizes, indices.unbind(-1), is_masked.unbind(-1), strict=True)
        embedded = sum(table(torch.where(hidden, size, index)) for table, size, index, hidden in columns)
        x = torch.cat([self.class_embedding(labels)[:, None], embedded], dim=1)
        if self.positions is not None:
            x = x + self.positions
        x = self.token_dropout(x)
        rope = self.rope.rows(0, x.shape[1], x.device)
        for block in self.layers[:layer]:
            x = block(x, rope)
        return x

    def _index_logits(self, hidden: Tensor) -> list[Tensor]:
        """States (B,N,C) -> the logits (B,N,V) float32 of each index."""
        normed = self.norm(hidden)
        return [output(normed).float() for output in self.outputs]

    def training_flops(self) -> tuple[PartFlops, ...]:
        layers = TRAINED * sum(layer.flops(self.num_tokens + 1) for layer in self.layers)
        head = TRAINED * sum(linear_flops(output, self.num_tokens) for output in self.outputs)
        return PartFlops("layers", "matrix", layers, recomputed=True), PartFlops("head", "matrix", head)

    def functional_pass(self) -> FunctionalPass:
        return FunctionalPass(self)

    # ---------------------------------------------------------------------------------------- masks and losses
    def training_choices(self) -> Callable[[np.random.Generator], dict[str, Tensor]]:
        return partial(draw_mask, self.token_shape, self.config.mask_schedule)

    def training_inputs(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Any]:
        return {"mask": batch["mask"]}

    def held_out_inputs(self, tokens: Tensor) -> list[dict[str, Any]]:
        return [{"mask": mask} for mask in held_out_masks(self._by_slot(tokens))]

    def loss(self, outputs: MaskedOutputs, tokens: Tensor) -> Tensor:
        """The mean of `image_losses` in evaluation mode. In training, with smoothed targets and weights:

            k sum w_s CE_s / (B S mean weight),    w = 1 where slot s is masked, else `visible_weight`

        The released codes divide by the sum of the weights of one device's batch, which changes with the number of
        devices and micro-batches; this is its expectation.
        """
        if not self.training:
            return self.image_losses(outputs, tokens).mean()
        log_p, chosen = self._log_probabilities(outputs, tokens)
        losses = -chosen

        # A share of the target is spread over all codes of the index.
        if self.config.label_smoothing > 0:
            total = log_p.masked_fill(log_p == -torch.inf, 0).sum(-1)
            columns = zip(total.unbind(-1), self.codebook_sizes, strict=True)
            mean = torch.stack([column / size for column, size in columns], dim=-1)
            losses = (1 - self.config.label_smoothing) * losses - self.config.label_smoothing * mean

        weights = torch.where(outputs.mask, 1.0, self.config.visible_weight)
        return len(self.codebook_sizes) * (weights * losses).mean() / self.mean_weight

    def image_losses(self, outputs: MaskedOutputs, tokens: Tensor) -> Tensor:
        """The cross entropy of each image (B,): mean over the masked slots, times the indices of a token, in nats."""
        _, chosen = self._log_probabilities(outputs, tokens)
        mask = outputs.mask
        return len(self.codebook_sizes) * -(chosen * mask).sum((1, 2)) / mask.sum((1, 2))

    def _log_probabilities(self, outputs: MaskedOutputs, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """log p of all codes (B,N,k,V), and of the right ones (B,N,k)."""
        log_p = outputs.logits.log_softmax(-1)
        return log_p, log_p.gather(-1, self._by_slot(tokens)[..., None])[..., 0]

    # ---------------------------------------------------------------------------------------- in passes
    def completed_passes(self, passes: Passes | None) -> Passes:
        return (passes or Passes()).completed(self.slots, self.config.mask_schedule)

    def num_draws_in(self, passes: Passes | None) -> int:
        """Each pass has a number for each slot to draw it, then one for each to decide whether it stays."""
        return 2 * self.slots * self.completed_passes(passes).count

    @property
    def num_draws(self) -> int:
        return self.num_draws_in(None)

    @property
    def passes_per_image(self) -> int:
        """As many as it is drawn in by itself."""
        return self.completed_passes(None).count

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
        passes: Passes | None = None,
        numbers: Numbers | None = None,
        order: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B,N) or (B,N,k) for class `labels` (B,), in `passes`; see `Generator.sample`.

        The schedule of guidance counts passes. `numbers` are those that choose which slots stay; without them the most
        probable ones do. Temperature and filters say how an index is drawn, not how far it is trusted.

        With an `order` (N,) of the cells, one slot is drawn after the other, without a choice; guidance counts tokens.
        """
        assert not self.training, "sampling needs evaluation mode: call eval() first"
        options = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        if order is not None:
            return self._sample_in_order(labels, order, draw, options)
        passes = self.completed_passes(passes)
        settings = self._settings(passes.count, options)

        # All is masked. Unconditional rows follow where any pass is guided.
        rows = self.with_unconditional(labels, settings.num_guided > 0)
        tokens, is_masked = self._all_masked(len(labels))
        for number, masked_after in enumerate(passes.masked_after(self.slots)):
            if number == settings.num_guided:
                rows = labels

            # Every slot is drawn anew.
            of_pass = settings.at(number)
            guided = self._guided_logits(rows, tokens, is_masked, of_pass)
            first = 2 * self.slots * number
            drawn, trust = self._candidates(guided, of_pass, draw, first)

            # Known ones stay; of the others those of the least trust are masked again.
            scale = passes.noise_scale(number)
            if numbers is not None and scale > 0:
                uniform = numbers(first + self.slots, self.slots).to(trust.device)
                trust = trust + scale * gumbel(uniform).view_as(trust)
            tokens = torch.where(is_masked, drawn, tokens)
            is_masked = least(trust.masked_fill(~is_masked, torch.inf), masked_after)
        return tokens.reshape(-1, *self.token_shape)

    def _sample_in_order(self, labels: Tensor, order: Tensor, draw: Draw, options: dict[str, Any]) -> Tensor:
        """One slot after the other: the cells in `order` (N,), and the indices of each in turn."""
        require_order(order, self.num_tokens)
        settings = self._settings(self.num_tokens, options)
        tokens, is_masked = self._all_masked(len(labels))
        for place, cell in enumerate(order.tolist()):
            rows = self.with_unconditional(labels, place < settings.num_guided)
            of_token = settings.at(place)
            for number, one in enumerate(of_token):
                logits = self._guided_logits(rows, tokens, is_masked, of_token)[number][:, cell]
                p = probabilities(logits, one.temperature, one.top_k, one.top_p)
                tokens[:, cell, number] = draw(p, place * len(of_token) + number)
                is_masked[:, cell, number] = False
        return tokens.reshape(-1, *self.token_shape)

    def _settings(self, steps: int, options: dict[str, Any]) -> DecodingSettings:
        return DecodingSettings(steps, len(self.codebook_sizes), **options)

    def _all_masked(self, batch: int) -> tuple[Tensor, Tensor]:
        """Indices (B,N,k), of any value, and the mask that hides them all."""
        shape = (batch, self.num_tokens, len(self.codebook_sizes))
        tokens = torch.zeros(shape, dtype=torch.int64, device=self.device)
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def _guided_logits(
        self, rows: Tensor, tokens: Tensor, is_masked: Tensor, settings: Sequence[IndexSettings]
    ) -> list[Tensor]:
        """Logits (B,N,V) of each index. `rows` are the labels (B,), with unconditional ones (2B,) under guidance."""
        batch = len(tokens)
        copies = len(rows) // batch
        hidden = self._hidden(rows, tokens.repeat(copies, 1, 1), is_masked.repeat(copies, 1, 1), self.num_layers)
        logits = zip(self._index_logits(hidden[:, 1:]), settings, strict=True)
        return [spread_nan(guided_logits(part, batch, one.guidance_scale)) for part, one in logits]

    def _candidates(
        self, guided: Sequence[Tensor], settings: Sequence[IndexSettings], draw: Draw, first: int
    ) -> tuple[Tensor, Tensor]:
        """An index for each slot, and its log p without temperature and filters: (B,N,k) int64 and float64.

        Slot s of the image takes draw number `first` + s.
        """
        indices = len(guided)
        drawn, trust = [], []
        for number, (logits, one) in enumerate(zip(guided, settings, strict=True)):
            cells = enumerate(logits.unbind(1))
            filters = (one.temperature, one.top_k, one.top_p)
            column = [draw(probabilities(row, *filters), first + cell * indices + number) for cell, row in cells]
            drawn.append(torch.stack(column, dim=1))
            log_p = logits.double().log_softmax(-1)
            trust.append(log_p.gather(-1, drawn[-1][..., None])[..., 0])
        return torch.stack(drawn, dim=-1), torch.stack(trust, dim=-1)


class FunctionalPass(nn.Module):
    """See `Generator.functional_pass`."""

    def __init__(self, generator: MaskGIT) -> None:
        super().__init__()
        self.network = generator
        self.register_buffer("masked", torch.tensor(generator.codebook_sizes), persistent=False)

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        is_masked = tokens == (self.masked if tokens.ndim == 3 else self.masked[0])
        logits = self.network(labels, tokens, mask=is_masked).logits
        return logits if tokens.ndim == 3 else logits[:, :, 0]
