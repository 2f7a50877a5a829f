"""Writes a page to explore a trained tokenizer by hand: its tokens over images, what replacing each of them does, a map
of its codebook, samples of its generator at several guidance scales, and its training curves.

    python -m evaluations.atlas runs/quickstart                          (a tokenizer and its GPT)
    python -m evaluations.atlas runs/VQ_SS256 --data-path my_photos/     (a tokenizer, with images of your own)
    python -m evaluations.atlas runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 --classes 12 --device cuda
    python -m evaluations.atlas runs/VQ_SS256 runs/VQ_SB256 --output both.html    (two tokenizers side by side)
    python -m evaluations.atlas shipped:gigatok --drawn-images           (a model that comes along, without any data)

The page is one HTML file of at most 15 MB, by default atlas.html in the folder of the run. It loads nothing else and
works without a network. Images are held-out ones of the run's data, unless flags name others. Where decoding is slow,
--images, --tokens and --codes set how many pictures are decoded: by default 8 x 64 x 8.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from autoregressive.guidance import Guidance
from autoregressive.image_sampler import SamplerSettings
from engine.atomic_file import write_atomic
from engine.checkpoint.weights import WEIGHT_CHOICES
from engine.cli import add_device_flag, entry_parser, not_negative, positive, run_entry
from engine.data.sources import attribution_of, open_source
from engine.messages import UserError, logger
from engine.outputs import require_suffix
from engine.preflight import Preflight, require
from engine.world import World, distributed_world
from evaluations.atlas.assemble import assemble
from evaluations.atlas.counted_images import ImageChoice
from evaluations.atlas.gather import Sizes, SubjectPart, gather
from evaluations.atlas.guided_samples import IMAGE_SCALE, drawn_images
from evaluations.atlas.subject import Place, Subject, load_subject, place_of, subject_needs
from evaluations.report.page import claim_page
from tokenizer.cli import add_image_flags, config_among, images_from, images_to_check

MAX_RUNS = 2
DEFAULT_SCALES = "1,1.5,2,3,5"


def scales_type(text: str) -> list[float]:
    """The argparse type of --scales: numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers separated by commas, such as 1,2,4") from None


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # What is shown.
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run, checkpoint or export; two are laid side by side")
    parser.add_argument(
        "--gpt-ckpt", action="append", default=[],
        help="generator for the samples, once per RUN (default: that of the run, where it has one)",
    )  # fmt: skip
    parser.add_argument(
        "--tok-config", "--model-config", action="append", default=[],
        help="YAML file of the architecture, for a published file; once, or once per RUN",
    )  # fmt: skip
    parser.add_argument("--weights", default="auto", choices=WEIGHT_CHOICES, help="auto: the EMA if there is one")
    add_image_flags(parser)
    parser.add_argument(
        "--drawn-images", action="store_true", help="show images that the generator draws; no data are needed"
    )

    # How much of it.
    parser.add_argument("--images", type=positive, default=8, help="images that are shown (default 8)")
    parser.add_argument("--tokens", type=positive, default=64, help="tokens per image that are replaced (default 64)")
    parser.add_argument("--codes", type=positive, default=8, help="codes in the place of each token (default 8)")
    parser.add_argument(
        "--counted-images", type=positive, default=500, help="images whose codes are counted (default 500)"
    )
    parser.add_argument("--classes", type=not_negative, default=8, help="classes with samples (default 8; 0 = none)")
    parser.add_argument("--per-class", type=positive, default=2, help="samples per class and scale (default 2)")
    parser.add_argument(
        "--scales", type=scales_type, default=DEFAULT_SCALES, help=f"guidance scales (default {DEFAULT_SCALES})"
    )
    parser.add_argument("--global-seed", "--seed", dest="seed", type=int, default=0, help="of the samples")

    # How it is computed, and where it goes.
    parser.add_argument("--per-proc-batch-size", type=positive, default=32)
    parser.add_argument("--output", type=Path, help="page to write (default: RUN/atlas.html; atlas.html for two runs)")
    add_device_flag(parser)
    return parser.parse_args()


def places_of(args: argparse.Namespace) -> list[Place]:
    """The networks that the flags name. Raises UserError for flags that do not fit together."""
    if len(args.runs) > MAX_RUNS:
        raise UserError(f"{len(args.runs)} runs are named; a page shows one, or {MAX_RUNS} side by side")
    for flag, values in (("--gpt-ckpt", args.gpt_ckpt), ("--tok-config", args.tok_config)):
        if len(values) > len(args.runs):
            raise UserError(f"{flag} is given {len(values)} times for {len(args.runs)} RUN")
    generators = [*args.gpt_ckpt, *[None] * len(args.runs)]
    places = [place_of(run, generator) for run, generator in zip(args.runs, generators, strict=False)]
    if args.drawn_images and places[0].generator is None:
        raise UserError(f"--drawn-images: {places[0].run} has no generator that could draw them; name one (--gpt-ckpt)")
    return places


def config_of(args: argparse.Namespace, number: int) -> str | None:
    """The YAML of the architecture of RUN number `number`; None where it has none."""
    return config_among(args.tok_config, args.runs, number)


def page_path(args: argparse.Namespace) -> Path:
    """Where the page goes. Raises UserError for a name that is not that of an HTML file."""
    if args.output is not None:
        require_suffix(args.output, ".html", "--output")
        return args.output
    run = Path(args.runs[0])
    return run / "atlas.html" if len(args.runs) == 1 and run.is_dir() else Path("atlas.html")


def page_title(places: list[Place]) -> str:
    """The title of the page, by which an earlier page of the same runs is known."""
    return f"Atlas: {' / '.join(place.title for place in places)}"


def held_out(args: argparse.Namespace) -> argparse.Namespace:
    """The flags, with --data-path as held-out images where --val-path names no others."""
    if args.val_path is None and args.data_path is not None:
        return argparse.Namespace(**{**vars(args), "val_path": args.data_path, "data_path": None})
    return args


def sampler_settings(args: argparse.Namespace) -> list[SamplerSettings]:
    """One setting of the sampler per guidance scale. Raises ConfigError for a scale or seed that is none."""
    return [SamplerSettings(guidance=Guidance(scale=scale), seed=args.seed) for scale in args.scales]


def choose_images(args: argparse.Namespace, subject: Subject, world: World) -> ImageChoice:
    """The images that the page is about: held-out ones of the subject's data, or samples of its generator."""
    if args.drawn_images:
        count = max(args.images, args.counted_images)
        source = drawn_images(subject, count, args.seed, args.per_proc_batch_size, world)
        what = f"samples of {subject.place.title} (guidance scale {IMAGE_SCALE:g})"
        return ImageChoice.of(source, what, args.images, args.counted_images)
    data = images_from(held_out(args), subject.tokenizer)
    source = open_source(data, "val")
    return ImageChoice.of(source, f"held-out images of {data.name}", args.images, args.counted_images, data.skip_broken)


def gather_all(args: argparse.Namespace, places: list[Place], world: World) -> tuple[list[SubjectPart], ImageChoice]:
    """All parts of all subjects, and the images that all of them see: those of the first one's data."""
    sizes = Sizes(
        tokens=args.tokens,
        codes=args.codes,
        batch_size=args.per_proc_batch_size,
        classes=args.classes,
        per_class=args.per_class,
        settings=sampler_settings(args),
    )

    # One tokenizer after the other.
    parts: list[SubjectPart] = []
    choice = None
    for number, place in enumerate(places):
        subject = load_subject(place, config_of(args, number), args.weights, world.device)
        choice = choice or choose_images(args, subject, world)
        parts.append(gather(subject, choice, sizes, world))
    return parts, choice


def write_atlas(args: argparse.Namespace, world: World) -> Path:
    """Computes everything and writes the page; returns its path."""
    places = places_of(args)
    path, title = page_path(args), page_title(places)
    claim_page(path, title)
    parts, choice = gather_all(args, places, world)
    text = assemble(title, parts, places, choice.what, attribution_of(choice.source.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    return path


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for all networks, the held-out images, and a place for the page."""
    preflight.device(args.device)
    with preflight.collecting():
        sampler_settings(args)

    # The networks, and the images: those of the first tokenizer.
    places: list[Place] = []
    with preflight.collecting():
        places = places_of(args)
    for number, place in enumerate(places):
        tokenizer = subject_needs(place, config_of(args, number), args.weights, preflight)
        if number == 0 and not args.drawn_images:
            with preflight.collecting():
                data = images_to_check(held_out(args), tokenizer)
                if data is not None:
                    preflight.images(data, "val")

    # The page.
    with preflight.collecting():
        path = page_path(args)
        claim_page(path, page_title(places))
        preflight.output(path.parent, "--output")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    with distributed_world(args.device) as world:
        if world.size > 1:
            raise UserError(f"{world.size} processes were started; this command uses one")
        path = write_atlas(args, world)
        logger.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)


if __name__ == "__main__":
    run_entry(main)
