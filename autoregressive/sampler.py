"""From class labels to images, in batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from autoregressive.sampling import greedy, seeded_draw
from engine.data.images import resize_for_evaluation, to_uint8
from engine.devices import synchronize
from engine.messages import ConfigError


@dataclass(frozen=True)
class SamplerSettings:
    """Everything that an image depends on besides the weights, its class and its sample number."""

    guidance: Guidance
    temperature: float | tuple[float, ...] = 1.0  # this and the next two may be given for each index of a token
    top_k: int | tuple[int, ...] = 0
    top_p: float | tuple[float, ...] = 1.0
    seed: int = 0
    greedy: bool = False

    def __post_init__(self) -> None:
        settings = (self.temperature, self.top_k, self.top_p)
        coldest, top_k, top_p = (v if isinstance(v, tuple) else (v,) for v in settings)
        if min(coldest) <= 0 or min(top_k) < 0 or not all(0 < p <= 1 for p in top_p):
            raise ConfigError(
                f"temperature={self.temperature} must be above 0, top_k={self.top_k} 0 or more, "
                f"top_p={self.top_p} in (0, 1]"
            )


@torch.inference_mode()
def sample_images(
    gpt: GPT,
    tokenizer: nn.Module,
    labels: Tensor,
    sample_ids: Tensor,
    settings: SamplerSettings,
    batch_size: int,
    image_size: int | None = None,
    seconds: dict[str, float] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (tokens (b,N) or (b,N,k), images uint8 (b,3,H,W)), on the CPU, for `labels` (B,) and `sample_ids` (B,) in
    order.

    Images are resized to `image_size` as LlamaGen's evaluation does. The time of generation and of decoding is added to
    `seconds`, under `generation` and `decoding`.
    """
    device, num_draws = next(gpt.parameters()).device, gpt.config.num_tokens * gpt.config.num_indices
    for start in range(0, len(labels), batch_size):
        rows = slice(start, start + batch_size)
        begun = time.perf_counter()
        draw = greedy if settings.greedy else seeded_draw(settings.seed, sample_ids[rows], num_draws)
        tokens = generate(
            gpt,
            labels[rows].to(device),
            draw=draw,
            guidance=settings.guidance,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        synchronize(device)
        generated = time.perf_counter()
        made = tokenizer.decode_indices(tokens)
        made = to_uint8(resize_for_evaluation(made, image_size or made.shape[-1])).cpu()
        if seconds is not None:
            seconds["generation"] = seconds.get("generation", 0.0) + generated - begun
            seconds["decoding"] = seconds.get("decoding", 0.0) + time.perf_counter() - generated
        yield tokens.cpu(), made
