"""What generators have in common that draw one token after the other: sampling, and random orders in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoregressive.bit_drawing import BitDrawing
from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.models.base import Generator
from autoregressive.models.decode_steps import DecodeSteps, RecordedStepsByRows, StaticSteps, StepFunctions, Steps
from autoregressive.models.kv_cache import Position
from autoregressive.models.random_order import (
    OrderConfig,
    draw_order,
    input_rows,
    mixed_orders,
    require_order,
    takes_random,
)
from autoregressive.sampling import (
    DecodingSettings,
    Draw,
    IndexSettings,
    Numbers,
    PerIndex,
    guided_logits,
    probabilities,
)
from engine.devices import is_gpu
from engine.finite import spread_nan


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross entropy in nats, mean over all tokens, summed over the indices of a token.

    Logits (B,N,V) and tokens (B,N), or (B,N,k,V) and (B,N,k).
    """
    num_indices = tokens.shape[2] if tokens.ndim == 3 else 1
    return num_indices * F.cross_entropy(logits.flatten(0, -2), tokens.flatten())


def next_token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """The same of each sample (B,), up to rounding."""
    losses = F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none")
    return losses.view(*tokens.shape[:2], -1).sum(-1).mean(-1)


def at_position(rows: Tensor, position: Position) -> Tensor:
    """The entry (1,) of `rows` (N,) at a position."""
    if isinstance(position, int):
        return rows.narrow(0, position, 1)
    return rows.index_select(0, position)


class TokenByToken(Generator):
    """A generator that predicts the tokens of an image one after the other, each from those before it.

    A subclass sets `order` and `has_target_positions`, and defines `forward(labels, tokens, drop, order)`, whose
    outputs are logits of the cells in raster whatever the order (B,N) of their prediction, and `step_functions`.
    """

    order: OrderConfig = OrderConfig()
    stops_early = True
    has_target_positions: bool = False  # the input of each place says which cell it predicts
    _recorded_steps: RecordedStepsByRows | None = None

    def step_functions(self, order: Tensor | None = None) -> StepFunctions:
        """What one decode step computes, in raster or in an `order` (N,)."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """`next_token_loss` of the logits of `forward`."""
        return next_token_loss(outputs, tokens)

    def sample_losses(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        """As `image_losses`, for all samples at once."""
        return next_token_losses(outputs, tokens)

    @property
    def any_order(self) -> bool:
        return self.has_target_positions

    # ---------------------------------------------------------------------------------------- random orders in training
    def training_choices(self) -> Callable[[np.random.Generator], dict[str, Tensor]] | None:
        return partial(draw_order, self.num_tokens) if self.order.is_random else None

    def training_inputs(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Any]:
        share = self.order.share(progress)
        if share == 0:
            return {}
        return {"order": mixed_orders(batch["order"], takes_random(batch["order_chance"], share))}

    def loss_groups(self, batch: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
        """The samples in a random order, and those in raster, while there are both."""
        share = self.order.share(progress)
        if share in (0, 1):
            return {}
        is_random = takes_random(batch["order_chance"], share)
        return {"random_order": is_random, "raster_order": ~is_random}

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
        order: Tensor | None = None,
        num_tokens: int | None = None,
        numbers: Numbers | None = None,
        bits: BitDrawing | None = None,
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
        if order is not None:
            require_order(order, self.num_tokens)
            order = order.to(self.device)

        # The first input is the class. Unconditional rows follow where any token is guided.
        inputs = self.with_unconditional(labels, settings.num_guided > 0)
        steps = self.decode_steps(len(inputs), order)

        tokens = []
        for position in range(self.num_tokens if num_tokens is None else num_tokens):
            if position == settings.num_guided and len(inputs) > batch:
                inputs = inputs[:batch]
                steps = steps.keep_rows(batch)

            # Both halves of a guided batch go on with the same token.
            token = self.next_token(steps, inputs, position, settings.at(position), draw, batch, numbers, bits)
            tokens.append(token)
            inputs = torch.cat([token] * (len(inputs) // batch))
        drawn = torch.stack(tokens, dim=1)
        return drawn if order is None else drawn.index_select(1, order.argsort())

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
        """One decode step: draws the indices of the token at `position`, one after the other: (batch,) or (batch,k).

        `inputs` are class labels at position 0, then the tokens before: `batch` conditional rows, and as many
        unconditional ones after them where the token is guided. `numbers` and `bits` are for a head that does not draw
        by index.
        """
        hidden = steps.hidden(inputs, position)
        previous_index = None
        indices = []
        for number, options in enumerate(settings):
            guided = guided_logits(steps.logits(hidden, previous_index, number), batch, options.guidance_scale)

            # A logit of -inf is no impossible code here: it overflowed, and the draw must see that.
            p = probabilities(spread_nan(guided), options.temperature, options.top_k, options.top_p)
            index = draw(p, position * len(settings) + number)
            indices.append(index)
            previous_index = torch.cat([index] * (len(hidden) // batch))
        return torch.stack(indices, dim=-1).reshape(batch, *self.token_shape[1:])

    def decode_steps(self, rows: int, order: Tensor | None = None) -> Steps:
        """The steps of a new batch of `rows` rows: attention over what is filled on a CPU, static shapes on a GPU.

        Steps are recorded for the raster order alone: a recorded step would have to be told of another one.
        """
        if not is_gpu(self.device):
            return DecodeSteps(self.step_functions(order), rows)
        if not self.record_steps or order is not None:
            return StaticSteps(self.step_functions(order), rows)
        if self._recorded_steps is None:
            self._recorded_steps = RecordedStepsByRows(self.step_functions())
        return self._recorded_steps.of(rows)


def decoding_rows(order: Tensor | None, position: Position) -> tuple[Position, Position]:
    """(row of the table of positions, cell that is predicted) of the input that is decoded at `position`."""
    if order is None:
        return position, position
    return at_position(input_rows(order), position), at_position(order, position)
