"""The head of masked bits (BAR, arXiv:2602.09024): a token is written as b bits, a few at a time.

An MLP sees the hidden state of a position and some of the token's bits, and predicts all of them; there is no attention
over bits. With W channels, the masked share m of the bits, and fixed normal frequencies w:

    x = RMS(merge(concatenated embeddings of the bits))        one table of 3 rows (0, 1, masked), shared by all bits
    s = SiLU(F([sin, cos](2 pi m w)) + project(norm(hidden)))  F: two linear layers with SiLU between
    x <- x + gate SwiGLU(RMS(x) (1 + scale) + shift)           in each layer; (shift, scale, gate) = linear of SiLU(s)
    logits = output(RMS(x) (1 + scale) + shift)                2 for each bit

Modulations and the output start at zero: the first loss is log 2 per bit. The memory of the head grows with the number
of bits, where a table of codes grows with 2^b: tokens may have 64 bits.

    training      random bits are masked (`autoregressive.models.bits`), chosen by the data stream
    held out      exact: the chain rule over the bits in fixed order, one pass of the head for each bit
    sampling      in a few steps. Each step draws all unknown bits, and keeps those that the head trusts most, or the
                  first ones; bits of one step are independent, so that fewer steps are a coarser distribution

Shapes    hidden (B,N,C)      tokens (B,N) or (B,N,k)      bits (B,N,b)      logits of bits (...,b,2) float32
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoregressive.bit_drawing import BitDrawing
from autoregressive.models.bits import (
    MASKED,
    BitsConfig,
    bits_of_sizes,
    draw_bit_masks,
    expected_share,
    has_whole_bits,
    to_bits,
    to_tokens,
)
from autoregressive.models.head import Head, HeadSettings
from autoregressive.models.kv_cache import KVCache
from autoregressive.models.layers import RMSNorm
from autoregressive.sampling import Draw, IndexSettings, Numbers, guided_logits, gumbel, least, probabilities
from engine.arithmetic import ceil_div
from engine.finite import spread_nan
from engine.flops import linear_flops
from engine.messages import ConfigError
from engine.validation import Problem

FREQUENCIES = 256


class BitEmbedding(nn.Module):
    """Bits (...,b) of 0, 1 or MASKED -> (...,width): a table shared by all bits, concatenated and merged."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        channels = ceil_div(width, bits)
        self.table = nn.Embedding(3, channels)
        self.merge = nn.Linear(bits * channels, width)

    def forward(self, bits: Tensor) -> Tensor:
        return self.merge(self.table(bits).flatten(-2))


class ModulatedMLP(nn.Module):
    """One layer of the head; see the module docstring."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(8 * width / 3)
        self.norm = RMSNorm(width)
        self.w1 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (...,W) and the condition SiLU(s), whose shape broadcasts to it."""
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        normed = self.norm(x) * (1 + scale) + shift
        return x + gate * self.w2(F.silu(self.w1(normed)) * self.w3(normed))


class MaskedBitsHead(Head, nn.Module):
    """See the module docstring."""

    draws_by_index = False
    draws_bits = True
    takes_numbers = True
    held_out_facts: Mapping[str, Any] = {"likelihood": "chain rule, the bits of a token one by one in fixed order"}

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__()
        self.options = settings.bits
        self.num_tokens = settings.num_tokens
        self.num_indices = len(settings.codebook_sizes)
        self.bits_of_index = bits_of_sizes(settings.codebook_sizes)
        self.bits = sum(self.bits_of_index)
        self.drawing = self.options.drawing(self.bits)  # where a sampler says nothing else

        # The mean weight of a bit in training: what is divided by, in the place of the sum of weights of a batch, which
        # changes with the number of devices and micro-batches.
        share = expected_share(self.bits, self.options.full_mask_share)
        self.mean_weight = share + self.options.visible_weight * (1 - share)

        # Do not reorder: the order fixes random initialization and optimizer state.
        width = self.options.width or settings.width
        self.read = BitEmbedding(self.bits, settings.width)  # tokens, as inputs of the GPT
        self.partial = BitEmbedding(self.bits, width)
        self.partial_norm = RMSNorm(width)
        self.register_buffer("frequencies", torch.randn(FREQUENCIES))
        self.share_in = nn.Linear(2 * FREQUENCIES, width)
        self.share_out = nn.Linear(width, width)
        self.hidden_norm = RMSNorm(settings.width) if settings.final_norm else nn.Identity()
        self.project = nn.Linear(settings.width, width)
        self.layers = nn.ModuleList(ModulatedMLP(width) for _ in range(settings.layers))
        self.norm = RMSNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, 2 * self.bits)

    def initialize(self) -> None:
        """Scales by the number of inputs in the place of 0.02, which is right for the published 2,048 channels.

        What the layers know of the hidden state has been through two SiLU, which shrink small values: with 0.02, a
        narrow head hardly sees it at first.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for table in (self.read.table, self.partial.table):
            nn.init.normal_(table.weight)
        for layer, gain in ((self.project, 2.0), (self.share_in, 1.0), (self.share_out, 1.0)):
            nn.init.normal_(layer.weight, std=gain * layer.in_features**-0.5)

    @classmethod
    def section_problems(cls, sizes: Sequence[int], bits: BitsConfig) -> Iterator[Problem]:
        if not all(has_whole_bits(size) for size in sizes):
            yield Problem("codebook_sizes", list(sizes), "powers of two, for a head that writes bits")
        elif bits.allocation and sum(bits.allocation) != sum(bits_of_sizes(sizes)):
            accepted = f"numbers whose sum is {sum(bits_of_sizes(sizes))}, the bits of a token"
            yield Problem("bits.allocation", bits.allocation, accepted)

    def output_layers(self) -> list[nn.Linear]:
        """What starts at zero: the output, and the modulations, which close all gates."""
        return [self.output, self.modulation, *(layer.modulation for layer in self.layers)]

    def token_shape(self, num_tokens: int) -> tuple[int, ...]:
        return (num_tokens,) if self.num_indices == 1 else (num_tokens, self.num_indices)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.read(to_bits(tokens, self.bits_of_index))

    # ---------------------------------------------------------------------------------------- the network
    def bit_logits(self, projected: Tensor, bits: Tensor, share: Tensor) -> Tensor:
        """Logits (...,b,2) of all bits, from `project(hidden_norm(hidden))` (...,W), from bits (...,b), of which some
        are MASKED, and from their masked share (...), of a shape that broadcasts.
        """
        angles = 2 * math.pi * share.float()[..., None] * self.frequencies.float()
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(projected.dtype)
        of_share = self.share_out(F.silu(self.share_in(waves)))
        condition = F.silu(F.silu(of_share + projected))

        x = self.partial_norm(self.partial(bits))
        for layer in self.layers:
            x = layer(x, condition)
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        x = self.norm(x) * (1 + scale) + shift
        return self.output(x).float().unflatten(-1, (self.bits, 2))

    def logits(
        self, hidden: Tensor, tokens: Tensor, bit_mask: Tensor | None = None, masked_share: Tensor | None = None
    ) -> Tensor:
        """Losses (B,N,b) of the bits in nats, whose sum is that of a token.

        Without a mask: -log p of each bit given those before it, in fixed order (exact, b passes of the head). In
        training it is w CE / (mean w): bits of `bit_mask` (B,N,b) are hidden and have the weight 1, others
        `visible_weight`; without a mask all are hidden.
        """
        bits = to_bits(tokens, self.bits_of_index)
        projected = self.project(self.hidden_norm(hidden))
        if bit_mask is None and not self.training:
            return self._chain_rule(projected, bits)
        if bit_mask is None:
            bit_mask, masked_share = torch.ones_like(bits, dtype=torch.bool), self._same_share(projected, 1.0)
        logits = self.bit_logits(projected, bits.masked_fill(bit_mask, MASKED), masked_share)
        weights = torch.where(bit_mask, 1.0, self.options.visible_weight)
        return weights * bit_losses(logits, bits) / self.mean_weight

    def _chain_rule(self, projected: Tensor, bits: Tensor) -> Tensor:
        """-log p (B,N,b) of each bit given those before it."""
        places = torch.arange(self.bits, device=bits.device)
        losses = []
        for known in range(self.bits):
            seen = bits.masked_fill(places >= known, MASKED)
            share = self._same_share(projected, 1 - known / self.bits)
            logits = self.bit_logits(projected, seen, share)[..., known, :]
            losses.append(bit_losses(logits, bits[..., known]))
        return torch.stack(losses, dim=-1)

    def _same_share(self, projected: Tensor, share: float) -> Tensor:
        """A share that all tokens have, of a shape that broadcasts."""
        return projected.new_full((1,) * (projected.ndim - 1), share, dtype=torch.float32)

    def flops(self, num_tokens: int) -> int:
        """Of one pass, that of a training."""
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        return sum(linear_flops(layer, num_tokens) for layer in linear)

    # ---------------------------------------------------------------------------------------- training
    def loss(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        return outputs.sum(-1).mean()

    def sample_losses(self, outputs: Tensor, tokens: Tensor) -> Tensor:
        return outputs.sum(-1).mean(-1)

    def training_choices(self, num_tokens: int) -> Callable[[np.random.Generator], dict[str, Tensor]]:
        return partial(draw_bit_masks, num_tokens, self.bits, self.options.full_mask_share)

    def training_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"bit_mask": batch["bit_mask"], "masked_share": batch["masked_share"]}

    # ---------------------------------------------------------------------------------------- sampling
    def num_draws(self, num_tokens: int) -> int:
        return self.num_draws_of_bits(num_tokens, self.drawing)

    def num_draws_of_bits(self, num_tokens: int, bits: BitDrawing) -> int:
        """In fixed order a number for each bit. Else one for each bit in every step, and as many for the choice of the
        bits that stay.
        """
        return num_tokens * self.bits * (2 * bits.num_steps if bits.order == "confidence" else 1)

    def completed_bits(self, bits: BitDrawing | None) -> BitDrawing:
        return self.drawing if bits is None else bits.completed(self.drawing)

    def next_logits(self, hidden: Tensor, bits: Tensor | None, number: int, cache: KVCache) -> Tensor:
        """Logits (B,b,2) of a token whose `bits` (B,b) are known or MASKED, as many in all rows; None: all masked.

        The masked share is computed from the bits: a recorded step serves any allocation.
        """
        if bits is None:
            bits = torch.full((len(hidden), self.bits), MASKED, device=hidden.device)
        projected = self.project(self.hidden_norm(hidden))
        num_known = (bits[:1] != MASKED).sum(-1)
        share = (1 - num_known.double() / self.bits).float()
        return self.bit_logits(projected, bits, share)

    def new_cache(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """A cache of no layers: there is nothing to keep."""
        return KVCache.empty(0, batch_size, 1, 1, 1, dtype=dtype, device=device)

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
        """Draws all bits of a token, as `bits` says; see `autoregressive.bit_drawing`.

        In step j the trust in a bit is the logit of its drawn value, plus tau g with a number g of the standard Gumbel
        distribution. `numbers` are those of g; without them (a greedy draw) there is no noise.
        """
        # At first nothing is known.
        options = one_for_all(settings)
        drawing = self.drawing if bits is None else bits
        known = torch.full((batch, self.bits), MASKED, device=self.frequencies.device)
        copies = 1
        known_before = 0

        for number, known_after in enumerate(drawing.known_after()):
            # What the head says, in one batch for both halves of a guided one.
            logits = logits_of(None if number == 0 else known.repeat(copies, 1), number)
            copies = len(logits) // batch
            guided = spread_nan(guided_logits(logits, batch, options.guidance_scale))

            # What is known after this step.
            tau = drawing.temperature_of(number, options.temperature)
            if drawing.order == "fixed":
                known = self._with_first(known, guided, tau, draw, place, range(known_before, known_after))
            else:
                first = (place * drawing.num_steps + number) * self.bits
                behind = self.num_tokens * drawing.num_steps * self.bits
                noise = None if numbers is None else numbers(behind + first, self.bits)  # behind all draws of the image
                known = self._with_most_trusted(known, guided, tau, draw, noise, first, known_after)
            known_before = known_after
        return to_tokens(known, self.bits_of_index)

    def _with_first(self, bits: Tensor, logits: Tensor, tau: float, draw: Draw, place: int, step: range) -> Tensor:
        """Bits (B,b) with those of a `step` drawn, the first ones that are still masked."""
        start, end = step.start, step.stop
        first = place * self.bits
        drawn = [draw(probabilities(logits[:, j], tau), first + j) for j in step]
        return torch.cat([bits[:, :start], torch.stack(drawn, dim=1), bits[:, end:]], dim=1)

    def _with_most_trusted(
        self, bits: Tensor, logits: Tensor, tau: float, draw: Draw, noise: Tensor | None, first: int, num_known: int
    ) -> Tensor:
        """Bits (B,b) with all masked ones drawn, by the draws from `first` on, and then those of the least trust masked
        again, so that `num_known` are left. `noise` (B,b) are the uniform numbers of the choice.
        """
        columns = enumerate(logits.unbind(1))
        drawn = torch.stack([draw(probabilities(column, tau), first + j) for j, column in columns], dim=1)
        trust = logits.gather(-1, drawn[..., None])[..., 0].double()
        if noise is not None:
            trust = trust + tau * gumbel(noise.to(trust.device))

        # Known bits stay.
        is_masked = bits == MASKED
        drawn = torch.where(is_masked, drawn, bits)
        trust = trust.masked_fill(~is_masked, torch.inf)
        return drawn.masked_fill(least(trust, self.bits - num_known), MASKED)


def bit_losses(logits: Tensor, bits: Tensor) -> Tensor:
    """-log p (...) in nats of bits (...), from their logits (...,2)."""
    difference = logits[..., 1] - logits[..., 0]
    return F.softplus(torch.where(bits == 1, -difference, difference))


def one_for_all(settings: Sequence[IndexSettings]) -> IndexSettings:
    """The settings that all bits of a token are drawn with. Raises ConfigError for several, and for filters."""
    one = settings[0]
    if any(other != one for other in settings):
        raise ConfigError("guidance and temperature: give one value each; a head that writes bits has none per index")
    if one.top_k or one.top_p != 1:
        raise ConfigError(f"top_k={one.top_k} and top_p={one.top_p}: a head that writes bits has no codes to filter")
    return one
