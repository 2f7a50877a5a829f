"""From class labels to images, in batches: settings of the sampler, tokens, pixels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autoregressive.bit_drawing import BitDrawing
from autoregressive.drawing_order import DrawingOrder, cells_in_order, order_problems
from autoregressive.generate import draw_tokens, num_draws_of
from autoregressive.guidance import Guidance
from autoregressive.models.base import Generator
from autoregressive.passes import Passes
from autoregressive.sampling import Draw, PerIndex, greedy, seeded_draw, setting_problems, settings_text
from engine.data.images import resize_for_evaluation, to_uint8
from engine.devices import synchronize
from engine.finite import numbered
from engine.messages import ConfigError
from engine.seeds import seed_problems
from engine.validation import Problem, Section, at_least
from tokenizer.models.base import PictureDecoder, Tokenizer

PASS_FLAGS = "--passes, --choice-temperature and --mask-schedule"
BIT_FLAGS = "--bit-allocation, --bit-order and --bit-temperature"


@dataclass(frozen=True)
class SamplerSettings(Section):
    """Everything that an image depends on besides the weights, its class and its sample number."""

    guidance: Guidance
    temperature: PerIndex[float] = 1.0  # this and the next two: one for all indices of a token, or one per index
    top_k: PerIndex[int] = 0
    top_p: PerIndex[float] = 1.0
    seed: int = 0
    greedy: bool = False
    num_tokens: int = 0  # the first ones of an image, for a tokenizer of flexible length; 0 = all
    passes: Passes | None = None  # of a generator that draws many tokens at once; None = as it does by itself
    order: DrawingOrder | None = None  # of the cells, for a generator of any order; None = as it does by itself
    bits: BitDrawing | None = None  # of a generator that writes the bits of a token; None = as it does by itself

    def problems(self) -> Iterator[Problem]:
        yield from setting_problems(self.temperature, self.top_k, self.top_p)
        yield from seed_problems(self.seed)
        yield from at_least(self, "num_tokens", 0)
        yield from order_problems(self.order)

    def fitted_to(self, generator: Generator, tokenizer: Tokenizer) -> SamplerSettings:
        """The settings for this generator, with the passes in which it draws.

        Raises ConfigError where images cannot have `num_tokens` tokens, or cannot be drawn in these passes or in this
        order, or their bits so.
        """
        settings = self._with_bits(generator)
        if settings.order is not None:
            return settings._with_order(generator)
        settings = settings._with_tokens(generator, tokenizer)
        if generator.in_passes:
            return replace(settings, passes=generator.completed_passes(settings.passes))
        if settings.passes is not None:
            raise ConfigError(f"{PASS_FLAGS} are for a masked generator; this one does not draw its tokens in passes")
        return settings

    def _with_bits(self, generator: Generator) -> SamplerSettings:
        """The settings with all that is said about bits; without it where the generator draws them so by itself."""
        if self.bits is None:
            return self
        if not generator.draws_bits:
            raise ConfigError(
                f"{BIT_FLAGS} are for a generator that writes the bits of a token; this one draws whole codes"
            )
        bits = generator.completed_bits(self.bits)
        return replace(self, bits=None if bits == generator.completed_bits(None) else bits)

    def _with_order(self, generator: Generator) -> SamplerSettings:
        """The settings for a generator of any order; without one where it draws in this order by itself."""
        if not generator.any_order:
            raise ConfigError(
                "--order is for a generator that was trained for any order of the cells, or a masked one; "
                "this one draws in one order only"
            )
        if self.num_tokens:
            raise ConfigError("give --num-tokens or --order, not both: the first tokens are those of raster")
        if self.passes is not None:
            raise ConfigError(f"give --order or {PASS_FLAGS}, not both: in an order, tokens are drawn one by one")
        cells = cells_in_order(self.order, generator.num_tokens, self.seed)
        is_usual = not generator.in_passes and cells == tuple(range(len(cells)))
        return replace(self, order=None) if is_usual else self

    def _with_tokens(self, generator: Generator, tokenizer: Tokenizer) -> SamplerSettings:
        """The settings for a number of tokens; without it where it is that of a whole image."""
        if self.num_tokens == 0:
            return self
        if not generator.stops_early:
            raise ConfigError(f"--num-tokens {self.num_tokens}: the generator does not draw one token after the other")
        if self.num_tokens > generator.num_tokens:
            accepted = f"0 (all) or 1..{generator.num_tokens}, the tokens of an image"
            raise ConfigError(f"--num-tokens {self.num_tokens} must be {accepted}")
        if "flexible" not in tokenizer.capabilities:
            raise ConfigError(
                f"--num-tokens {self.num_tokens}: the tokenizer decodes {tokenizer.num_tokens} tokens only; one of "
                "flexible length decodes any number"
            )
        return replace(self, num_tokens=0) if self.num_tokens == generator.num_tokens else self

    def facts(self) -> dict[str, Any]:
        """All settings, for a file; without those that other schedules of guidance, or whole images, do not have."""
        facts = asdict(self)
        if self.num_tokens == 0:
            del facts["num_tokens"]
        for name in ("passes", "order", "bits"):
            if facts[name] is None:
                del facts[name]
        if self.guidance.power == 1:
            del facts["guidance"]["power"]
        return facts

    def in_words(self) -> str:
        """The settings in one line for people."""
        of_draws = settings_text(
            guidance_scale=self.guidance.scale,
            guidance_schedule=self.guidance.schedule,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            greedy=self.greedy,
            order=self.order,
        )
        if self.bits is not None:
            of_draws += f", bits in {self.bits.num_steps} steps ({self.bits.order}, {self.bits.temperature})"
        return of_draws if self.passes is None else f"{of_draws}, {self.passes.count} passes"

    def cells(self, generator: Generator) -> Tensor | None:
        """The cells (N,) in the order in which they are drawn; None = as the generator does by itself."""
        if self.order is None:
            return None
        return torch.tensor(cells_in_order(self.order, generator.num_tokens, self.seed))

    def draw(self, sample_ids: Tensor, generator: Generator) -> Draw:
        """The random numbers of the samples `sample_ids` (B,), as many per image as the generator draws."""
        if self.greedy:
            return greedy
        return seeded_draw(self.seed, sample_ids, num_draws_of(generator, self.passes, self.bits))


@torch.inference_mode()
def sample_images(
    generator: Generator,
    decoder: Tokenizer | PictureDecoder,
    labels: Tensor,
    sample_ids: Tensor,
    settings: SamplerSettings,
    batch_size: int,
    image_size: int | None = None,
    seconds: dict[str, float] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (tokens (b,N) or (b,N,k), images uint8 (b,3,H,W)) on the CPU, for `labels` and `sample_ids` (B,) in order.

    Images are resized to `image_size` as LlamaGen's evaluation does. The time of generation and of decoding is added to
    `seconds`, under `generation` and `decoding`. Raises NonFiniteValuesError that names the stage and the samples where
    logits or pixels are not finite.
    """
    device = generator.device
    order = settings.cells(generator)
    for first in range(0, len(labels), batch_size):
        rows = slice(first, first + batch_size)

        # Tokens.
        start = time.perf_counter()
        with numbered("sample", sample_ids[rows]):
            tokens = draw_tokens(
                generator,
                labels[rows].to(device),
                draw=settings.draw(sample_ids[rows], generator),
                guidance=settings.guidance,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                num_tokens=settings.num_tokens or None,
                passes=settings.passes,
                order=order,
                bits=settings.bits,
            )
        synchronize(device)
        generated = time.perf_counter()

        # Pixels.
        with numbered("sample", sample_ids[rows]):
            decoded = decoder.decode_indices(tokens)
            resized = resize_for_evaluation(decoded, image_size or decoded.shape[-1])
            images = to_uint8(resized).cpu()
        if seconds is not None:
            seconds["generation"] = seconds.get("generation", 0.0) + generated - start
            seconds["decoding"] = seconds.get("decoding", 0.0) + time.perf_counter() - generated
        yield tokens.cpu(), images
