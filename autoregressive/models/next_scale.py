"""The network of VAR (arXiv:2404.02905): a transformer that predicts the codes of an image scale by scale.

The tokens of scale k are predicted at once, from the class and from all coarser scales. With the sum f_{k-1} of what
the codes of the scales before stand for (the quantizer of scales, whose codes are kept here, see `scale_codes`):

    input of scale 1       class + start
    input of scale k > 1   Linear(area(f_{k-1}, s_k))
    both                   + level[k] + positions

A token sees the tokens of its own scale and of coarser ones. Each layer is modulated by the class (AdaLN), and gates
are taken as they are, without 1 +:

    (g1, g2, s1, s2, b1, b2) = W SiLU(class) + b,  or with `shared_adaln` one W for all layers, and a table per layer
    x <- x + g1 * Attention(LN(x) * (1 + s1) + b1),   x <- x + g2 * MLP(LN(x) * (1 + s2) + b2)
    logits = output(LN(x) * (1 + s) + b),             (s, b) = W' SiLU(class) + b'

Queries and keys of each head have length 1; queries are multiplied by exp(min(a, log 100)), a learned per head. Keys
have no bias. The GELU is the tanh form.

Shapes    labels (B,) int64, `num_classes` is the null class      tokens (B,T) int64, T = sum of s_k^2, scale by scale
          logits (B,T,V) float32      sums of scales (B,D,h,h), h the cells per side of the last scale
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.models.base import DataSizes, Generator
from autoregressive.models.named_sizes import chosen_size, head_problems, size_problems
from autoregressive.sampling import DecodingSettings, Draw, PerIndex, guided_logits, probabilities
from engine.finite import has_values, spread_nan
from engine.flops import TRAINED, PartFlops, attention_flops, linear_flops
from engine.messages import ConfigError, UserError
from engine.validation import Problem, Section, above, at_least, in_range
from tokenizer.quantizers.multi_scale import MultiScaleConfig, MultiScaleVQ

NUMBERS = ("width", "layers", "heads")  # keys of a size
SIZES = {  # width, layers, heads
    "d16": (1024, 16, 16),
    "d20": (1280, 20, 20),
    "d24": (1536, 24, 24),
    "d30": (1920, 30, 30),
    "d36": (2304, 36, 36),
}
NORM_EPS = 1e-6
MAX_LOG_SCALE = math.log(100)  # of the queries of a head
DROP_PATH_PER_LAYER = 0.1 / 24  # of the last layer, times the number of layers
Past = tuple[Tensor, Tensor]  # keys and values (B,heads,n,head_dim) of the tokens before, in one layer


@dataclass(kw_only=True, slots=True)
class NextScaleConfig(Section):
    """A published size, or width, layers and heads; the scales and codes of the tokenizer; the classes."""

    SIZES: ClassVar[Mapping[str, tuple[int, int, int]]] = SIZES

    size: str | None = None  # d16 | d20 | d24 | d30 | d36
    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    scales: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6, 8, 10, 13, 16])  # those of the tokenizer
    code_dim: int = 32  # channels of a code of the tokenizer
    num_phis: int = 4  # convolutions that the tokenizer's scales share
    vocab_size: int | None = None  # null: as many as data.codes has (else 4096)
    num_classes: int | None = None  # null: as many as data.codes has (else 1000)
    shared_adaln: bool = False  # one modulation for all layers, and a table per layer (published d36)
    gate_init: float = 1e-3  # initial weights of gates are multiplied by it; published: 1e-4 d24, 1e-5 d30, 5e-6 d36
    drop_path: float | None = None  # training: of the last layer, linear over depth; null: 0.1 * layers / 24
    class_dropout_prob: float = 0.1  # training: fraction of labels replaced by the null class

    def problems(self) -> Iterator[Problem]:
        yield from size_problems(self, NUMBERS)
        yield from head_problems(self, NUMBERS)
        for name in ("vocab_size", "num_classes"):
            if getattr(self, name) is not None:
                yield from at_least(self, name, 1)
        yield from at_least(self, "code_dim", 1)
        yield from at_least(self, "num_phis", 1)
        rising = all(coarse < fine for coarse, fine in zip(self.scales, self.scales[1:], strict=False))
        if not self.scales or self.scales[0] < 1 or not rising:
            yield Problem("scales", self.scales, "one or more rising numbers, each 1 or more")
        yield from above(self, "gate_init", 0)
        yield from in_range(self, "class_dropout_prob", 0, 1)
        if self.drop_path is not None:
            yield from in_range(self, "drop_path", 0, 1)

    def completed(self, sizes: DataSizes) -> NextScaleConfig:
        """The section with what it leaves open as in `sizes`. Raises ConfigError for tokens of several indices."""
        return replace(
            self,
            vocab_size=sizes.single_codebook_size() if self.vocab_size is None else self.vocab_size,
            num_classes=sizes.num_classes if self.num_classes is None else self.num_classes,
        )

    def dims(self) -> tuple[int, int, int]:
        """(width, layers, heads). Raises ConfigError where neither they nor a size are given."""
        return chosen_size(self, NUMBERS, "model.next_scale")


class ScaleAttention(nn.Module):
    """Self-attention between queries and keys of length 1, with a learned scale per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.log_scale = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None, past: Past | None = None) -> tuple[Tensor, Past]:
        """x (B,n,C) -> (B,n,C), and the keys and values so far, `past` ones first."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        parts = F.linear(x, self.qkv.weight, bias.to(self.qkv.weight.dtype)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scale = self.log_scale.clamp_max(MAX_LOG_SCALE).exp()
        q = (F.normalize(q.float(), dim=-1) * scale.float()).to(v.dtype)
        k = F.normalize(k.float(), dim=-1).to(v.dtype)

        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(y.transpose(1, 2).flatten(2)), (k, v)


class ScaleLayer(nn.Module):
    """One layer; `condition` is the class embedding (B,C), or with a table the shared modulation (B,6,C)."""

    parallel_unit = "shard"

    def __init__(self, width: int, heads: int, drop_path: float, shared_adaln: bool) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.attention = ScaleAttention(width, heads)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.modulation = None if shared_adaln else nn.Linear(width, 6 * width)
        self.table = nn.Parameter(torch.empty(1, 1, 6, width)) if shared_adaln else None

    def forward(
        self, x: Tensor, condition: Tensor, mask: Tensor | None, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """x (B,n,C) -> (B,n,C), and the keys and values so far."""
        if self.modulation is not None:
            parts = self.modulation(F.silu(condition)).unflatten(-1, (6, -1))
        else:
            parts = condition + self.table[:, 0]
        gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = parts[:, None].unbind(2)
        y, past = self.attention(self.norm(x) * (1 + scale_1) + shift_1, mask, past)
        x = x + self._dropped(y * gate_1)
        hidden = F.gelu(self.fc1(self.norm(x) * (1 + scale_2) + shift_2), approximate="tanh")
        return x + self._dropped(self.fc2(hidden) * gate_2), past

    def _dropped(self, branch: Tensor) -> Tensor:
        """In training, the branch of some samples is 0, and that of the others is scaled up."""
        if not self.training or self.drop_path == 0:
            return branch
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1), self.drop_path)

    def flops(self, length: int) -> int:
        """Operations on one sequence (engine/flops.py)."""
        linears = (self.attention.qkv, self.attention.proj, self.fc1, self.fc2)
        modulation = linear_flops(self.modulation, 1) if self.modulation is not None else 0
        products = attention_flops(length, length, self.fc1.in_features)
        return sum(linear_flops(linear, length) for linear in linears) + products + modulation


class NextScale(Generator):
    """See the module docstring, and `Generator` for what is asked of it."""

    config_class = NextScaleConfig
    in_words = "autoregressive transformer over scales"

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        config = config.completed(DataSizes(codebook_sizes=(4096,), num_tokens=680, num_classes=1000))
        width, layers, heads = config.dims()
        self.config = config
        self.scales = list(config.scales)
        self.sizes = [side**2 for side in self.scales]
        self.num_classes = config.num_classes
        self.num_tokens = sum(self.sizes)
        self.num_layers = layers
        self.codebook_sizes = (config.vocab_size,)
        self.class_dropout_prob = config.class_dropout_prob
        self.codes_in_words = (
            f"a tokenizer of scales {self.scales}, {config.vocab_size} codes of {config.code_dim} channels and "
            f"{config.num_phis} convolutions"
        )

        # Do not reorder: the order fixes random initialization and optimizer state.
        self.word_embedding = nn.Linear(config.code_dim, width)
        self.class_embedding = nn.Embedding(config.num_classes + 1, width)
        self.start = nn.Parameter(torch.empty(1, self.sizes[0], width))
        self.positions = nn.Parameter(torch.empty(1, self.num_tokens, width))
        self.level_embedding = nn.Embedding(len(self.scales), width)
        self.shared_modulation = nn.Linear(width, 6 * width) if config.shared_adaln else None
        last = DROP_PATH_PER_LAYER * layers if config.drop_path is None else config.drop_path
        rates = [last * number / max(layers - 1, 1) for number in range(layers)]
        self.layers = nn.ModuleList(ScaleLayer(width, heads, rate, config.shared_adaln) for rate in rates)
        self.final_norm = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, config.vocab_size)
        self._init(width, layers)

        # The tokenizer's codes of scales. They are no parameters: training leaves them as they are.
        self.scale_codes = _without_training(
            MultiScaleVQ(
                MultiScaleConfig(
                    scales=self.scales,
                    codebook_size=config.vocab_size,
                    codebook_dim=config.code_dim,
                    num_phis=config.num_phis,
                )
            )
        )
        self.register_buffer("has_codes", torch.zeros((), dtype=torch.uint8))
        self._codes_were_there = False

    @property
    def passes_per_image(self) -> int:
        """One per scale."""
        return len(self.scales)

    @torch.no_grad()
    def _init(self, width: int, layers: int) -> None:
        """The released initial values: truncated normal weights, no biases, gates and the output near zero."""
        std = math.sqrt(1 / (3 * width))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for table in (self.start, self.positions):
            nn.init.trunc_normal_(table, std=std)

        self.output.weight.mul_(0.02)
        self.final_modulation.weight.mul_(0.5)
        if self.shared_modulation is not None:
            self.shared_modulation.weight.mul_(0.5)
        for layer in self.layers:
            layer.attention.proj.weight.div_(math.sqrt(2 * layers))
            layer.fc2.weight.div_(math.sqrt(2 * layers))
            if layer.modulation is not None:
                layer.modulation.weight[2 * width :].mul_(0.5)
                layer.modulation.weight[: 2 * width].mul_(self.config.gate_init)
            else:
                nn.init.trunc_normal_(layer.table, std=std)
                layer.table[:, :, 2:].mul_(0.5)
                layer.table[:, :, :2].mul_(self.config.gate_init)

    @classmethod
    def completed(cls, section: NextScaleConfig, sizes: DataSizes) -> NextScaleConfig:
        return section.completed(sizes)

    def layout_layers(self) -> list[nn.Linear]:
        return [self.output]

    # ---------------------------------------------------------------------------------------- codes of the tokenizer
    @torch.no_grad()
    def adopt_codes(self, quantizer: nn.Module) -> None:
        """Takes over the codes of scales of the tokenizer, where there are none yet.

        Raises ConfigError where its quantizer has other scales or sizes.
        """
        if not has_values(self.has_codes) or bool(self.has_codes):
            return
        theirs = quantizer.state_dict()
        ours = self.scale_codes.state_dict()
        fitting = all(name in theirs and theirs[name].shape == tensor.shape for name, tensor in ours.items())
        if not fitting or getattr(quantizer, "scales", None) != self.scales:
            raise ConfigError(f"this generator is for {self.codes_in_words}; the tokenizer has others")
        for name, tensor in ours.items():
            tensor.copy_(theirs[name])
        self.has_codes.fill_(1)

    def _require_codes(self) -> None:
        """Raises UserError while codes are missing; once they are there, the host never asks the device again."""
        if self._codes_were_there or not has_values(self.has_codes):
            return
        self._codes_were_there = bool(self.has_codes)
        if not self._codes_were_there:
            raise UserError(
                "this generator has no codes of a tokenizer: its file does not hold them; load it with its tokenizer"
            )

    # ---------------------------------------------------------------------------------------- all scales at once
    def forward(self, labels: Tensor, tokens: Tensor, drop: Tensor | None = None) -> Tensor:
        """Teacher-forced logits of all tokens. Rows where `drop` (B,) is true lose their class."""
        if drop is not None:
            labels = torch.where(drop, self.null_class, labels)
        return self._logits(self.features(labels, tokens, self.num_layers), self.class_embedding(labels))

    def features(self, labels: Tensor, tokens: Tensor, layer: int) -> Tensor:
        """Hidden states (B,T,C) after layer number `layer`, from 1, without the last norm."""
        self._require_codes()
        seen = self.scale_codes.next_inputs(tokens)
        classes = self.class_embedding(labels)
        first = classes[:, None] + self.start
        x = torch.cat([first, self.word_embedding(seen).to(first.dtype)], dim=1) + self._places(0, len(self.scales))

        levels = self._levels(0, len(self.scales))
        mask = levels[:, None] >= levels
        condition = self._condition(classes)
        for block in self.layers[:layer]:
            x, _ = block(x, condition, mask)
        return x

    def _levels(self, first: int, end: int) -> Tensor:
        """The numbers of the scales that the tokens of scales `first` to `end` - 1 belong to."""
        parts = [torch.full((self.sizes[number],), number, device=self.device) for number in range(first, end)]
        return torch.cat(parts)

    def _places(self, first: int, end: int) -> Tensor:
        """Level embeddings and positions of these scales (1,n,C)."""
        start, stop = sum(self.sizes[:first]), sum(self.sizes[:end])
        return self.level_embedding(self._levels(first, end)) + self.positions[:, start:stop]

    def _condition(self, classes: Tensor) -> Tensor:
        """What the layers take: class embeddings (B,C), or the shared modulation (B,6,C)."""
        if self.shared_modulation is None:
            return classes
        return self.shared_modulation(F.silu(classes)).unflatten(-1, (6, -1))

    def _logits(self, hidden: Tensor, classes: Tensor) -> Tensor:
        """Hidden states (B,n,C) -> logits (B,n,V) float32."""
        scale, shift = self.final_modulation(F.silu(classes))[:, None].chunk(2, dim=-1)
        return self.output(self.final_norm(hidden) * (1 + scale) + shift).float()

    def loss(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """Cross entropy in nats, mean over the tokens of all scales with equal weights."""
        return F.cross_entropy(outputs.flatten(0, 1), tokens.flatten())

    def training_flops(self) -> tuple[PartFlops, ...]:
        layers = TRAINED * sum(layer.flops(self.num_tokens) for layer in self.layers)
        head = TRAINED * linear_flops(self.output, self.num_tokens)
        return PartFlops("layers", "matrix", layers, recomputed=True), PartFlops("head", "matrix", head)

    # ---------------------------------------------------------------------------------------- scale by scale
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
        **unknown: Any,
    ) -> Tensor:
        """Tokens (B,T) for class `labels` (B,), in one pass per scale; see `Generator.sample`.

        The schedule of guidance counts scales. The published one is `linear` with `first_token="schedule"` and a scale
        of 1 + cfg: (1 + t) c - t u with t = cfg (k-1) / (K-1). Conditional and unconditional rows see the same sums.
        """
        assert not self.training, "sampling needs evaluation mode: call eval() first"
        assert not unknown, f"a generator of scales takes no {', '.join(unknown)}"
        self._require_codes()
        batch = len(labels)
        settings = DecodingSettings(
            len(self.scales), 1, guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p
        )

        # The class of every row, and what is known before the first scale.
        rows = self.with_unconditional(labels, settings.num_guided > 0)
        classes = self.class_embedding(rows)
        condition = self._condition(classes)
        past: list[Past | None] = [None] * self.num_layers
        total: Tensor | None = None
        drawn: list[Tensor] = []
        for number in range(len(self.scales)):
            if total is None:
                x = classes[:, None] + self.start
            else:
                seen = self.word_embedding(self.scale_codes.input_of(total, number).to(self.dtype))
                x = torch.cat([seen] * (len(rows) // batch))
            x = x + self._places(number, number + 1)

            # All of this scale at once: it sees itself and what is stored.
            for index, block in enumerate(self.layers):
                x, past[index] = block(x, condition, None, past[index])
            (options,) = settings.at(number)
            guided = guided_logits(self._logits(x, classes), batch, options.guidance_scale)

            # Each place draws by its own number.
            filters = (options.temperature, options.top_k, options.top_p)
            first = sum(self.sizes[:number])
            places = enumerate(spread_nan(guided).unbind(1), start=first)
            tokens = torch.stack([draw(probabilities(row, *filters), place) for place, row in places], dim=1)

            total = self.scale_codes.with_scale(total, tokens, number)
            drawn.append(tokens)
        return torch.cat(drawn, dim=1)


def _without_training(quantizer: MultiScaleVQ) -> MultiScaleVQ:
    """The quantizer with buffers, all zero, in the place of its parameters, and without a window of recent indices."""
    for module in quantizer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, torch.zeros_like(parameter, requires_grad=False))
    del quantizer.recent_indices
    return quantizer.eval()
