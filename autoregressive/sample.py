"""Generates images of chosen classes and writes them as PNG files and grids.

    bash scripts/sample_c2i_visualization.sh --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 \\
        --class-idx "22,388,90,978" --qual-num 40 --cfg-scale 4.0 --sample-dir results/samples
    python -m autoregressive.sample --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt

With the same seed and settings, sample i always looks the same, whatever the batch size. Several processes share the
classes.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor

from autoregressive.cli import add_gpt_flags, add_sampler_flags, gpt_from, gpt_needs, settings_of
from autoregressive.image_sampler import SamplerSettings, sample_images
from autoregressive.loading import classes_of
from autoregressive.models.base import Generator
from engine.arithmetic import ceil_div
from engine.cli import add_device_flag, entry_parser, positive, run_entry
from engine.data.classes import Classes
from engine.data.images import save_grid, to_float, to_pil
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from engine.progress import progress
from engine.world import World, distributed_world
from tokenizer.cli import add_tokenizer_flags, tokenizer_from, tokenizer_needs
from tokenizer.models.base import Tokenizer

DEFAULT_CLASSES = 8  # how many are drawn without --class-idx
GRID_COLUMNS = 8
IMAGENET_FOLDER = re.compile(r"n\d{8}")  # name of a class folder
SAMPLES_PER_CLASS = 2**32  # sample numbers kept for each class, so that no two classes share one


def chosen_classes(args: argparse.Namespace, generator: Generator) -> list[int]:
    """The labels that --class-idx or --class-name asks for; the first ones without either.

    Raises UserError for a class that the generator does not know.
    """
    if args.class_name:
        known = classes_of(generator)
        return [known.label_of(name) for name in args.class_name]
    if args.class_idx:
        return parse_classes(args.class_idx, generator.num_classes)
    return list(range(min(DEFAULT_CLASSES, generator.num_classes)))


def parse_classes(text: str, num_classes: int) -> list[int]:
    """Reads `"22,388"` as [22, 388]. Raises UserError for anything that is not a list of classes."""
    try:
        classes = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--class-idx {text!r} must be numbers separated by commas, such as 22,388") from None
    unknown = [label for label in classes if not 0 <= label < num_classes]
    if unknown:
        raise UserError(f"--class-idx has {unknown[0]}, but the generator knows the classes 0..{num_classes - 1}")
    return classes


def folder_name(label: int, classes: Classes) -> str:
    """`class_22_bald_eagle` for ImageNet, `class_3_cat` for other named classes, `class_3` for unknown ones."""
    is_imagenet = len(classes) == 1000 and (not classes.are_named or IMAGENET_FOLDER.fullmatch(classes.names[label]))
    if not (is_imagenet or classes.are_named):
        return f"class_{label}"
    name = classes.names[label]
    if is_imagenet:
        from torchvision.models._meta import _IMAGENET_CATEGORIES

        name = _IMAGENET_CATEGORIES[label]
    plain_name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return f"class_{label}_{plain_name}".removesuffix("_")


def draw_class(
    generator: Generator, tokenizer: Tokenizer, label: int, count: int, settings: SamplerSettings, batch_size: int
) -> Tensor:
    """`count` images of one class, uint8 (count,3,H,W)."""
    sample_ids = torch.arange(count) + label * SAMPLES_PER_CLASS
    labels = torch.full((count,), label)
    batches = sample_images(generator, tokenizer, labels, sample_ids, settings, batch_size)
    return torch.cat([images for _, images in batches])


def write_class(folder: Path, images: Tensor) -> None:
    """Writes each image as PNG, and a grid of all."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        to_pil(image).save(folder / f"{number:06d}.png")
    save_grid(folder / "grid.png", to_float(images), columns=min(GRID_COLUMNS, len(images)))


def sample(args: argparse.Namespace, settings: SamplerSettings, world: World) -> None:
    """Writes the images of all classes; the ranks share the classes."""
    tokenizer = tokenizer_from(args, world.device)
    generator = gpt_from(args, tokenizer, world.device)
    classes = chosen_classes(args, generator)
    images_per_class = ceil_div(args.qual_num, len(classes))

    first_images = []
    rank_classes = classes[world.rank :: world.size]
    for label in progress(rank_classes, "classes", world):
        images = draw_class(generator, tokenizer, label, images_per_class, settings, args.per_proc_batch_size)
        write_class(args.sample_dir / folder_name(label, classes_of(generator)), images)
        first_images.append(images[:1])

    # The grid of the folder shows one image of each class that the main process drew.
    world.barrier()
    if world.is_main:
        overview = to_float(torch.cat(first_images))
        save_grid(args.sample_dir / "grid.png", overview, columns=min(GRID_COLUMNS, len(overview)))
        logger.info("wrote %d images of each of %d classes under %s", images_per_class, len(classes), args.sample_dir)


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--class-idx", help='class numbers, such as "22,388" (default: the first eight classes)')
    which.add_argument(
        "--class-name", action="append", help="name of a class, as its training folder is called; may be repeated"
    )
    parser.add_argument(
        "--qual-num",
        type=positive,
        default=40,
        help="number of images in total, divided among the classes (default 40)",
    )
    parser.add_argument("--sample-dir", type=Path, default=Path("results/samples"))
    parser.add_argument("--per-proc-batch-size", type=positive, default=32)
    add_device_flag(parser)
    add_sampler_flags(parser)
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for both networks, and whether they know the classes."""
    preflight.device(args.device)
    generator = gpt_needs(args, tokenizer_needs(args, preflight), preflight)
    if generator is not None:
        with preflight.collecting():
            chosen_classes(args, generator)
    preflight.output(args.sample_dir, "--sample-dir")


def main() -> None:
    args = parse_args()
    settings = settings_of(args)
    require(args, lambda preflight: needs(args, preflight))
    with distributed_world(args.device) as world:
        sample(args, settings, world)


if __name__ == "__main__":
    run_entry(main)
