"""From class labels to images: the settings of a sampler, its command-line flags, and batched generation."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoregressive.generate import GUIDANCE_SCHEDULES, Guidance, generate, greedy, seeded_draw
from autoregressive.gpt import GPT
from engine.config import ConfigError
from engine.distributed import synchronize
from engine.images import resize_for_evaluation, to_uint8


def several(kind: Callable[[str], float]) -> Callable[[str], float | tuple[float, ...]]:
    """The argparse type of a setting: one number, or one for each index of a token with commas between."""

    def parse(text: str) -> float | tuple[float, ...]:
        values = tuple(kind(part) for part in text.split(","))
        return values if len(values) > 1 else values[0]

    parse.__name__ = kind.__name__  # in argparse's message
    return parse


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


def add_sampler_flags(parser: argparse.ArgumentParser) -> None:
    """The documented flags of the sampler."""
    parser.add_argument(
        "--cfg-scale",
        type=several(float),
        default=2.0,
        help="guidance scale, 1 = off (default 2.0; a search starts at the published one); 1.75,1.8,2,2: of each index",
    )
    parser.add_argument("--cfg-schedule", default="constant", choices=sorted(GUIDANCE_SCHEDULES))
    parser.add_argument(
        "--step-start-ratio", type=float, default=0.18, help="schedule step: guided from here (default 0.18)"
    )
    parser.add_argument(
        "--cfg-interval", type=int, default=-1, help="no guidance after this decoding step; -1 = always"
    )
    parser.add_argument(
        "--guidance-first-token", default="full", choices=["full", "schedule"], help="as released: full"
    )
    parser.add_argument(
        "--unguided-scale", type=float, default=1.0, help="scale where a schedule is off (released: 1.0001)"
    )
    parser.add_argument("--temperature", type=several(float), default=1.0)
    parser.add_argument("--top-k", type=several(int), default=0, help="0 = all codes")
    parser.add_argument("--top-p", type=several(float), default=1.0)
    parser.add_argument("--greedy", action="store_true", help="always the most probable code")
    parser.add_argument("--global-seed", "--seed", dest="seed", type=int, default=0)


def settings_of(args: argparse.Namespace) -> SamplerSettings:
    """The settings that the flags describe."""
    guidance = Guidance(
        scale=args.cfg_scale,
        schedule=args.cfg_schedule,
        start=args.step_start_ratio,
        first_token=args.guidance_first_token,
        unguided_scale=args.unguided_scale,
        last_guided=args.cfg_interval,
    )
    return SamplerSettings(guidance, args.temperature, args.top_k, args.top_p, args.seed, args.greedy)


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
