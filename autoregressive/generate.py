"""Sampling tokens from a generator: the public function `autoregressive.generate`, and its core `draw_tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoregressive.bit_drawing import BitDrawing
from autoregressive.guidance import UNGUIDED, Guidance
from autoregressive.labels import Labels, as_labels
from autoregressive.models.base import Generator
from autoregressive.passes import Passes
from autoregressive.sampling import Draw, PerIndex, require_settings, seeded_draw
from engine.arguments import require_callable, require_network, whole_numbers, wrong_argument
from engine.finite import FiniteCheck
from engine.messages import UserError
from engine.validation import collecting, raise_problems


def generate(
    generator: Generator,
    labels: Labels,
    *,
    guidance_scale: PerIndex[float] | None = None,
    seed: int | None = None,
    sample_ids: Sequence[int] | Tensor | None = None,
    guidance: Guidance | None = None,
    draw: Draw | None = None,
    temperature: PerIndex[float] = 1.0,
    top_k: PerIndex[int] = 0,
    top_p: PerIndex[float] = 1.0,
    order: Sequence[int] | Tensor | None = None,
    num_tokens: int | None = None,
    passes: Passes | int | None = None,
    bits: BitDrawing | None = None,
) -> Tensor:
    """Draws tokens (B,N) or (B,N,k) int64 for classes, on the device of a generator in evaluation mode.

        tokens = generate(gpt, ["cat", "dog"], guidance_scale=2.0, seed=0)
        images = tokenizer.detokenize(tokens, output="pil")

    `labels`: numbers or names of classes, one or several (`autoregressive.labels`).

    `guidance_scale`: strength of classifier-free guidance, 1 (off, the default) or more; or `guidance`, with all that
    can be set. `seed` (0 by default) and `sample_ids` (0, 1, 2, ... by default) fix the random numbers: sample i of a
    seed always looks the same, whatever the batch. Or `draw`, such as `autoregressive.sampling.greedy`. Settings may be
    given once or per index of a token; see `Generator.sample`.

    `order`: the cells 0..N-1 in the order in which they are drawn, for a generator that was trained for any order
    (`generator.any_order`). `num_tokens`: how many to draw, the first ones of an image, for a tokenizer of flexible
    length; all by default. `passes`: how a masked generator draws many tokens at once, or only how many passes it
    takes; the most probable ones stay where a `draw` has no random numbers of its own (`SeededDraw.numbers`). `bits`:
    how a generator that writes the bits of a token draws them (`autoregressive.bit_drawing`).

    Raises UserError for anything but a generator in evaluation mode, for a class that it does not know and for settings
    that are of another kind, out of range or said twice, and NonFiniteValuesError, with the rows, where logits were not
    finite.
    """
    _require_ready(generator)

    # Two ways to say the same are one too many.
    if guidance is not None and guidance_scale is not None:
        raise UserError("give guidance_scale or guidance, not both: a Guidance has a scale of its own")
    if draw is not None and (seed is not None or sample_ids is not None):
        raise UserError("give draw or seed (with sample_ids), not both: a draw has random numbers of its own")

    # What to draw, and from which random numbers.
    classes = as_labels(generator, labels)
    chosen_passes = _passes_of(generator, passes, order is not None)
    chosen_bits = _bits_of(generator, bits)
    if draw is None:
        numbers = _sample_numbers(sample_ids, len(classes))
        draw = seeded_draw(0 if seed is None else seed, numbers, num_draws_of(generator, chosen_passes, chosen_bits))
    require_callable(draw, "draw", "a function, such as greedy from autoregressive.sampling")
    return draw_tokens(
        generator,
        classes,
        draw=draw,
        guidance=_guidance_of(guidance, guidance_scale),
        temperature=_setting(temperature),
        top_k=_setting(top_k),
        top_p=_setting(top_p),
        order=_order_of(generator, order),
        num_tokens=_count_of(generator, num_tokens, order is not None),
        passes=chosen_passes,
        bits=chosen_bits,
    )


def num_draws_of(generator: Generator, passes: Passes | None, bits: BitDrawing | None) -> int:
    """How many random numbers an image takes that is drawn in these passes, or with these bits."""
    return generator.num_draws_in(passes) if bits is None else generator.num_draws_of_bits(bits)


def _passes_of(generator: Generator, passes: Passes | int | None, is_ordered: bool) -> Passes | None:
    """The passes that a caller asks for. Raises UserError where the generator takes none, or with an order."""
    if passes is None:
        return None
    if not generator.in_passes:
        raise UserError("passes: this generator does not draw its tokens in passes")
    if is_ordered:
        raise UserError("give passes or order, not both: in an order, tokens are drawn one after the other")
    if not isinstance(passes, Passes):
        passes = Passes(count=int(whole_numbers(passes, "passes")))
    return generator.completed_passes(passes)


def _bits_of(generator: Generator, bits: BitDrawing | None) -> BitDrawing | None:
    """How a caller asks for bits to be drawn. Raises UserError where the generator draws none."""
    if bits is None:
        return None
    if not isinstance(bits, BitDrawing):
        raise wrong_argument("bits", bits, "a BitDrawing (autoregressive.bit_drawing)")
    if not generator.draws_bits:
        raise UserError("bits: this generator does not write the bits of its tokens")
    return generator.completed_bits(bits)


def _count_of(generator: Generator, num_tokens: int | None, is_ordered: bool) -> int | None:
    """How many tokens to draw. Raises UserError for a number that cannot be, or with an order of its own."""
    if num_tokens is None:
        return None
    count = int(whole_numbers(num_tokens, "num_tokens"))
    if not generator.stops_early:
        raise UserError("num_tokens: this generator does not draw its tokens one after the other")
    if is_ordered:
        raise UserError("give num_tokens or order, not both: the first tokens of an image are those of raster")
    if not 1 <= count <= generator.num_tokens:
        raise UserError(f"num_tokens={count} must lie in 1..{generator.num_tokens}, the tokens of an image")
    return count


def _order_of(generator: Generator, order: Sequence[int] | Tensor | None) -> Tensor | None:
    """The order of drawing, int64 (N,). Raises UserError where the generator knows none, or for another length."""
    if order is None:
        return None
    if not generator.any_order:
        raise UserError("order: this generator draws its tokens in one order only; it has no positions of targets")
    return whole_numbers(order, "order").to(torch.int64)


def _require_ready(generator: Generator) -> None:
    """Raises UserError for anything but a generator in evaluation mode."""
    accepted = 'a generator, such as GPT.from_pretrained("runs/quickstart")'
    require_network(generator, Generator, "generator", accepted)
    if generator.training:
        raise UserError("the generator is in training mode, where it leaves out parts at random: call eval() first")


def _guidance_of(guidance: Guidance | None, scale: PerIndex[float] | None) -> Guidance:
    """The guidance that the caller gives, as a whole or by its scale. Raises UserError for other things."""
    if guidance is not None:
        if not isinstance(guidance, Guidance):
            raise wrong_argument("guidance", guidance, "a Guidance (a scale alone is guidance_scale=2.0)")
        return guidance
    if scale is None:
        return UNGUIDED
    with collecting():
        of_scale = Guidance(scale=_setting(scale))
    raise_problems([replace(problem, key="guidance_scale").text("") for problem in of_scale.problems()])
    return of_scale


def _setting(value: Any) -> Any:
    """A setting of the sampler as plain numbers: arrays, tensors and lists become a number, or a tuple of them."""
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _sample_numbers(sample_ids: Sequence[int] | Tensor | None, count: int) -> Tensor:
    """The numbers of `count` samples, int64 (B,). Raises UserError for another number of them, or negative ones."""
    if sample_ids is None:
        return torch.arange(count)
    numbers = whole_numbers(sample_ids, "sample_ids").to(torch.int64)
    if numbers.ndim != 1 or len(numbers) != count or int(numbers.min()) < 0:
        raise UserError(f"sample_ids must be {count} whole numbers from 0, one per label")
    return numbers


def draw_tokens(
    generator: Generator,
    labels: Tensor,
    *,
    draw: Draw,
    guidance: Guidance = UNGUIDED,
    temperature: PerIndex[float] = 1.0,
    top_k: PerIndex[int] = 0,
    top_p: PerIndex[float] = 1.0,
    order: Tensor | None = None,
    num_tokens: int | None = None,
    passes: Passes | None = None,
    bits: BitDrawing | None = None,
) -> Tensor:
    """Draws tokens (B,N) or (B,N,k) int64 for class `labels` (B,) that are on the generator's device already.

    `draw` is `autoregressive.sampling.greedy`, or `seeded_draw` with as many numbers per image as `num_draws_of` says.
    Settings may be given once or per index of a token; see `Generator.sample`.

    Raises ConfigError for a setting out of range, and NonFiniteValuesError, with the rows, where logits were not
    finite: every draw notes that on the device, and it is read once, after the last one.
    """
    require_settings(temperature, top_k, top_p)
    check = FiniteCheck("logits of the generator")

    def checked_draw(p: Tensor, position: int) -> Tensor:
        check.note(p)
        return draw(p, position)

    further = {"order": order, "num_tokens": num_tokens, "passes": passes, "bits": bits}
    if generator.in_passes or generator.takes_numbers:  # numbers beside those of the indices, where the draw has any
        further["numbers"] = getattr(draw, "numbers", None)
    further = {name: value for name, value in further.items() if value is not None}  # not every generator takes them
    tokens = generator.sample(
        labels, draw=checked_draw, guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p, **further
    )
    check.require()
    return tokens
