"""The contract of a GPT's heads: how a token is read and written.

Shapes    hidden (B,N,C)      tokens (B,N) or (B,N,k) int64
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from autoregressive.bit_drawing import BitDrawing
from autoregressive.models.bits import BitsConfig
from autoregressive.models.kv_cache import KVCache
from autoregressive.models.rope import Rope
from autoregressive.models.token_by_token import next_token_loss, next_token_losses
from autoregressive.sampling import Draw, IndexSettings, Numbers
from engine.validation import Problem


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What a head is built from."""

    codebook_sizes: tuple[int, ...]  # one entry per index of a token
    num_tokens: int  # per image
    width: int  # channels of the GPT
    heads: int  # attention heads of a transformer of the head's own; its layers, dropout and positions follow
    layers: int
    dropout: float
    qk_norm: bool
    rope: Rope
    final_norm: bool = True  # whether the states of the last layer are still to be normed
    bits: BitsConfig = field(default_factory=BitsConfig)  # of a head that writes bits


class Head:
    """Base class of all heads; a head is entered in `HEADS`.

    The GPT builds a head as `Class(settings)` after the class embedding, calls `add_input` then and `add_output` after
    its own layers. A head that is a `nn.Module` holds its parameters itself and need not define these two.
    """

    max_indices: ClassVar[int | None] = None  # indices per token that it can write; None = any number
    draws_by_index: ClassVar[bool] = True  # one index after the other, with `next_logits`; else with `draw_token`
    draws_bits: ClassVar[bool] = False  # `draw_token` takes `bits`
    takes_numbers: bool = False  # `draw_token` takes random numbers that are not of an index
    held_out_facts: Mapping[str, Any] = {}  # see `Generator.held_out_facts`

    @classmethod
    def section_problems(cls, sizes: Sequence[int], bits: BitsConfig) -> Iterator[Problem]:
        """What is wrong with codebooks of these sizes, and with the section of bits, which most heads do not read."""
        if bits != BitsConfig():
            yield Problem("bits", "set", "left out, as this head does not write bits")

    def add_input(self, gpt: nn.Module) -> None:
        """Registers modules that read tokens in the GPT itself."""

    def add_output(self, gpt: nn.Module) -> None:
        """Registers modules that write tokens in the GPT itself."""

    def initialize(self) -> None:
        """Sets initial values of its own, over those that the GPT gives to all linear layers and tables."""

    def output_layers(self) -> Sequence[nn.Linear]:
        """The layers that give logits; the GPT starts them at zero."""
        raise NotImplementedError

    def token_shape(self, num_tokens: int) -> tuple[int, ...]:
        """Shape of one image's tokens."""
        raise NotImplementedError

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B,n) or (B,n,k), or without n -> hidden states (B,n,C), or (B,C)."""
        raise NotImplementedError

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits of all tokens, from the hidden states (B,N,C) of their positions; or what else `loss`
        and `sample_losses` take, one tensor with the batch in front. In training with the `training_inputs`.
        """
        raise NotImplementedError

    def loss(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """The scalar that is trained on, from the outputs of `logits`: nats per token."""
        return next_token_loss(outputs, tokens)

    def sample_losses(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """The same of each sample (B,)."""
        return next_token_losses(outputs, tokens)

    def training_choices(self, num_tokens: int) -> Callable[[np.random.Generator], dict[str, Tensor]] | None:
        """What draws the random choices of one training sample (see `Generator.training_choices`)."""
        return None

    def training_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Further arguments of `logits` in training, from the choices in `batch`."""
        return {}

    def flops(self, num_tokens: int) -> int | None:
        """Operations of `logits` for one image (see `engine.flops`); None where they are not counted."""
        return None

    def next_logits(self, hidden: Tensor, previous_index: Tensor | None, number: int, cache: KVCache) -> Tensor:
        """Logits (B,V) of index `number` of one token.

        `hidden` (B,C) is the hidden state of the token's position, the same for all its indices; `previous_index` (B,)
        is the value of index `number - 1`, None for the first one.
        """
        raise NotImplementedError

    def num_draws(self, num_tokens: int) -> int:
        """How many random numbers an image of `num_tokens` tokens takes."""
        return math.prod(self.token_shape(num_tokens))

    def completed_bits(self, bits: BitDrawing | None) -> BitDrawing:
        """See `Generator.completed_bits`; for a head that `draws_bits`."""
        raise NotImplementedError

    def num_draws_of_bits(self, num_tokens: int, bits: BitDrawing) -> int:
        """`num_draws` where bits are drawn so, for a head that `draws_bits`."""
        raise NotImplementedError

    def draw_token(
        self,
        logits_of: Callable[[Tensor | None, int], Tensor],
        place: int,
        settings: Sequence[IndexSettings],
        draw: Draw,
        numbers: Numbers | None,
        batch: int,
        bits: BitDrawing | None = None,
    ) -> Tensor:
        """The token (batch,) or (batch,k) at a place of an image, for a head that does not draw by index.

        `logits_of(input, number)` is `next_logits` of the place's hidden state: of `batch` conditional rows, and as
        many unconditional ones where the token is guided. The other arguments are those of `Generator.sample`.
        """
        raise NotImplementedError

    def new_cache(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """An empty cache for `next_logits`. Every token uses it anew, from index 0 on."""
        raise NotImplementedError
