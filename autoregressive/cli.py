"""Command-line flags that name a trained generator and set the sampler."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from autoregressive.bit_drawing import BIT_ORDERS, BIT_TEMPERATURES, BitDrawing
from autoregressive.drawing_order import ACCEPTED_ORDERS, NAMED_ORDERS, DrawingOrder
from autoregressive.guidance import FIRST_TOKENS, GUIDANCE_SCHEDULES, Guidance
from autoregressive.image_sampler import SamplerSettings
from autoregressive.loading import load_gpt, require_pair, require_sizes, survey_gpt
from autoregressive.models.base import Generator
from autoregressive.models.registry import GeneratorConfig
from autoregressive.models.weight_layouts import PLAIN, WEIGHT_LAYOUTS
from autoregressive.passes import DEFAULT_CHOICE_TEMPERATURE, DEFAULT_PASSES, MASK_SCHEDULES, Passes
from autoregressive.published import PUBLISHED_SIZES, published_config
from autoregressive.published_samplers import add_published_sampler_flag
from autoregressive.sampling_weights import AUTO, set_weight_layout
from engine.checkpoint.weights import WEIGHT_CHOICES
from engine.devices import is_gpu
from engine.messages import logger
from engine.preflight import Preflight
from engine.validation import collecting, problems_of, raise_problems
from engine.world import World
from tokenizer.cli import trained_network_help
from tokenizer.models.base import Tokenizer
from tokenizer.published.files import is_published

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}  # beside fp32, which weights have when they are loaded


def per_index_type(kind: Callable[[str], float]) -> Callable[[str], float | tuple[float, ...]]:
    """The argparse type of a sampler setting: one number, or one per index of a token, separated by commas."""

    def parse(text: str) -> float | tuple[float, ...]:
        values = tuple(kind(part) for part in text.split(","))
        return values if len(values) > 1 else values[0]

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse


def order_type(text: str) -> DrawingOrder:
    """The argparse type of an order of drawing."""
    if text in NAMED_ORDERS:
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be {ACCEPTED_ORDERS}") from None


def allocation_type(text: str) -> tuple[int, ...]:
    """The argparse type of the bits of each step."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers, such as 2,2,5,7") from None


def add_sampler_flags(parser: argparse.ArgumentParser, *, is_demo: bool = False) -> None:
    """Adds the documented flags of the sampler. A demo may choose the layout of weights by measuring, a result not."""
    add_published_sampler_flag(parser)

    # Classifier-free guidance.
    parser.add_argument(
        "--cfg-scale",
        type=per_index_type(float),
        default=2.0,
        help="guidance scale, or one per index of a token, as in 1.75,1.8,2,2; 1 = off "
        "(default 2.0; a search starts at the published starting scale)",
    )
    parser.add_argument("--cfg-schedule", default="constant", choices=sorted(GUIDANCE_SCHEDULES))
    parser.add_argument(
        "--step-start-ratio",
        type=float,
        default=0.18,
        help="with --cfg-schedule step: fraction of tokens before guidance starts (default 0.18)",
    )
    parser.add_argument(
        "--cfg-power",
        type=float,
        default=1.0,
        help="with --cfg-schedule power_cosine: larger powers begin to guide later (default 1)",
    )
    parser.add_argument(
        "--cfg-interval", type=int, default=-1, help="no guidance after this decoding step; -1 = no such limit"
    )
    parser.add_argument(
        "--guidance-first-token",
        default="full",
        choices=FIRST_TOKENS,
        help="scale of the first token: the full one (as released), or that of the schedule; power_cosine and rising "
        "have their own",
    )
    parser.add_argument(
        "--unguided-scale", type=float, default=1.0, help="scale where a schedule is off (released code: 1.0001)"
    )

    # How an index is drawn from its logits.
    parser.add_argument("--temperature", type=per_index_type(float), default=1.0)
    parser.add_argument(
        "--top-k",
        type=per_index_type(int),
        default=0,
        help="draw only from the k most probable codes; 0 = from all codes",
    )
    parser.add_argument("--top-p", type=per_index_type(float), default=1.0)
    parser.add_argument("--greedy", action="store_true", help="always take the most probable code")
    parser.add_argument(
        "--num-tokens",
        type=int,
        default=0,
        help="draw the first tokens of an image only, for a tokenizer of flexible length (default 0: all)",
    )

    parser.add_argument(
        "--order",
        type=order_type,
        help=f"generator that was trained for any order of the cells: {', '.join(NAMED_ORDERS)} (one for all images, "
        "from the seed), or all cells, such as 3,2,1,0; a masked generator then draws one token after the other",
    )

    # How a masked generator chooses what it keeps of each pass.
    parser.add_argument(
        "--passes",
        type=int,
        help=f"masked generator: passes over the whole image (default {DEFAULT_PASSES})",
    )
    parser.add_argument(
        "--choice-temperature",
        type=float,
        help="masked generator: noise in the choice of the tokens that stay, which falls to 0 "
        f"(default {DEFAULT_CHOICE_TEMPERATURE})",
    )
    parser.add_argument(
        "--mask-schedule",
        choices=sorted(MASK_SCHEDULES),
        help="masked generator: how many tokens are masked after each pass (default: as in its training)",
    )

    # How the bits of a token are drawn.
    parser.add_argument(
        "--bit-allocation",
        type=allocation_type,
        metavar="N,N,...",
        help="generator of bits: how many bits of a token are drawn in each step, as 2,2,5,7 of 16; one number, as 1: "
        "so many in every step (default: as its config says)",
    )
    parser.add_argument(
        "--bit-order",
        choices=BIT_ORDERS,
        help="generator of bits: which ones stay in a step, those that it trusts most, or the first ones (default: as "
        "its config says)",
    )
    parser.add_argument(
        "--bit-temperature",
        choices=BIT_TEMPERATURES,
        help="generator of bits: --temperature in every step, or falling with the steps (default: as its config says)",
    )
    parser.add_argument("--global-seed", "--seed", dest="seed", type=int, default=0)

    # How it is computed.
    measured = f"; {AUTO}: the fastest of the first three here, by a short measurement" if is_demo else ""
    parser.add_argument(
        "--weight-layout",
        default=PLAIN,
        choices=[PLAIN, *WEIGHT_LAYOUTS, *([AUTO] if is_demo else [])],
        help="weights of the generator on a CPU: plain (default), transposed and packed give the same logits up to "
        f"rounding; bf16 and int8 give others, and what they change is measured{measured}",
    )
    parser.add_argument(
        "--no-cuda-graphs",
        action="store_true",
        help="on a GPU: launch every kernel of a decode step, instead of recording the step once as a CUDA graph",
    )


def settings_of(args: argparse.Namespace) -> SamplerSettings:
    """The settings that the flags describe. Raises one ConfigError that lists all problems."""
    # Sections built one by one would each raise alone.
    with collecting():
        guidance = Guidance(
            scale=args.cfg_scale,
            schedule=args.cfg_schedule,
            start=args.step_start_ratio,
            power=args.cfg_power,
            first_token=args.guidance_first_token,
            unguided_scale=args.unguided_scale,
            last_guided=args.cfg_interval,
        )
        settings = SamplerSettings(
            guidance=guidance,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            greedy=args.greedy,
            num_tokens=args.num_tokens,
            passes=_passes_of(args),
            order=args.order,
            bits=_bits_of(args),
        )
    raise_problems(problems_of(settings), "the sampler")
    return settings


def _passes_of(args: argparse.Namespace) -> Passes | None:
    """The passes of a masked generator that the flags name; None without any."""
    given = (args.passes, args.choice_temperature, args.mask_schedule)
    if given == (None, None, None):
        return None
    return Passes(count=args.passes, choice_temperature=args.choice_temperature, schedule=args.mask_schedule)


def _bits_of(args: argparse.Namespace) -> BitDrawing | None:
    """How the flags ask for bits to be drawn; None without any."""
    given = (args.bit_allocation, args.bit_order, args.bit_temperature)
    if given == (None, None, None):
        return None
    return BitDrawing(allocation=args.bit_allocation, order=args.bit_order, temperature=args.bit_temperature)


def add_gpt_flags(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds the documented flags that name a generator. `--weights` and `default` are as in the tokenizer's flags."""
    parser.add_argument(
        "--gpt-ckpt",
        required=default is None,
        help=trained_network_help("generator", default),
    )
    parser.add_argument("--gpt-config", help="YAML file of the architecture, for a published file")
    parser.add_argument(
        "--gpt-model",
        choices=list(PUBLISHED_SIZES),
        help="instead of --gpt-config: a published size, with 1,000 classes",
    )
    parser.add_argument("--gpt-2d", action="store_true", help="with --gpt-model: 2D rotary positions (LlamaGen)")

    parser.add_argument("--gpt-weights", choices=WEIGHT_CHOICES, help="of the generator (default: as --weights)")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=["none", "fp32", "bf16", "fp16"],
        help="precision of the generator (default fp32; none means fp32 too)",
    )


def gpt_from(args: argparse.Namespace, tokenizer: Tokenizer, device: torch.device) -> Generator:
    """The generator that the flags name, checked against the tokenizer, in the precision asked for."""
    config = _architecture(args, tokenizer)
    weights = args.gpt_weights or args.weights
    generator = load_gpt(args.gpt_ckpt, config=config, weights=weights, device=device)
    require_pair(generator, tokenizer)

    if args.precision not in PRECISIONS:
        return generator
    if device.type == "cpu":
        logger.info(
            "--precision %s: on a CPU the generator runs in fp32; for weights in bf16 there: --weight-layout bf16",
            args.precision,
        )
        return generator
    return generator.to(PRECISIONS[args.precision])


def set_sampling(
    args: argparse.Namespace, generator: Generator, settings: SamplerSettings, batch_size: int, world: World
) -> None:
    """Sets how a loaded generator computes its samples, as the flags say; the weights stay where they are afterwards.

    A collective. Raises ConfigError for a layout of weights that cannot be computed.
    """
    generator.record_steps = is_gpu(generator.device) and not args.no_cuda_graphs
    rows = batch_size if settings.guidance.scale == 1 else 2 * batch_size
    set_weight_layout(generator, args.weight_layout, rows, world)


def gpt_needs(args: argparse.Namespace, tokenizer: Tokenizer | None, preflight: Preflight) -> Generator | None:
    """Looks for the generator that the flags name, and whether it fits the tokenizer, which may be missing; returns it
    without storage, or None where it is not there.
    """
    if preflight.comes_later(args.gpt_ckpt, "--gpt-ckpt"):
        return None
    with preflight.collecting():
        # Without the tokenizer, a published size says nothing of the codebook.
        if tokenizer is None and is_published(args.gpt_ckpt) and args.gpt_config is None:
            preflight.file(args.gpt_ckpt, "--gpt-ckpt")
            return None
        config = args.gpt_config if tokenizer is None else _architecture(args, tokenizer)
        weights = args.gpt_weights or args.weights
        generator = survey_gpt(args.gpt_ckpt, config=config, weights=weights, hashed=preflight.hashes)
        if tokenizer is not None:
            require_sizes(generator, tokenizer)
        preflight.ready.append(f"--gpt-ckpt: {args.gpt_ckpt} ({generator.num_classes} classes)")
        return generator
    return None


def sampler_needs(
    args: argparse.Namespace, generator: Generator | None, tokenizer: Tokenizer | None, preflight: Preflight
) -> None:
    """Looks whether the generator, with its tokenizer, can draw what the sampler is asked for; either may be missing.

    A search has not chosen its scale yet (`cfg_scale` None); any other setting is judged.
    """
    if generator is None or tokenizer is None:
        return
    scale = 1.0 if args.cfg_scale is None else args.cfg_scale
    with preflight.collecting():
        settings_of(argparse.Namespace(**{**vars(args), "cfg_scale": scale})).fitted_to(generator, tokenizer)


def _architecture(args: argparse.Namespace, tokenizer: Tokenizer) -> str | GeneratorConfig | None:
    """The architecture of a published file, as the flags say it: a YAML file, or a published size."""
    if args.gpt_config is not None or args.gpt_model is None:
        return args.gpt_config
    codebook_size = tokenizer.quantizer.codebook_size
    return published_config(args.gpt_model, codebook_size, tokenizer.num_tokens, rotary=args.gpt_2d)
