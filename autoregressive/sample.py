"""Generates images of chosen classes and writes them as PNG files and grids.

    bash scripts/sample_c2i_visualization.sh --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 \\
        --class-idx "22,388,90,978" --qual-num 40 --cfg-scale 4.0 --sample-dir results/samples
    python -m autoregressive.sample --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt
    python -m autoregressive.sample
    python -m autoregressive.sample --vq-ckpt shipped:wetok --gpt-ckpt shipped:wetok --class-idx 3,7
    python -m autoregressive.sample --vq-ckpt runs/quickstart-rar/tokenizer --gpt-ckpt runs/quickstart-rar/gpt \\
        --order reversed --sample-dir results/reversed
    python -m autoregressive.sample --vq-ckpt runs/quickstart-bar/tokenizer --gpt-ckpt runs/quickstart-bar/gpt \\
        --bit-allocation 1 --bit-order fixed --sample-dir results/one_by_one

With the same seed and settings, sample i always looks the same, whatever the batch size. Several processes share the
classes. A class that is named twice gets further samples, in a numbered folder. A folder of the same settings is
continued; any other one that is not empty is refused. `evaluations.measure` takes the folder as a set of images.

Without --vq-ckpt and --gpt-ckpt, the small models that come with the program are used, and without --sample-dir too,
one picture is written: samples.png here, or samples-2.png, ... where that exists. Its rows are the classes.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autoregressive.cli import (
    add_gpt_flags,
    add_sampler_flags,
    gpt_from,
    gpt_needs,
    sampler_needs,
    set_sampling,
    settings_of,
)
from autoregressive.image_sampler import SamplerSettings, sample_images
from autoregressive.loading import classes_of
from autoregressive.models.base import Generator
from autoregressive.published_samplers import parse_with_sampler
from engine.arithmetic import ceil_div
from engine.atomic_file import atomic_file
from engine.cli import add_device_flag, entry_parser, positive, run_entry
from engine.data.classes import Classes
from engine.data.grids import save_grid
from engine.data.images import image_tensor, read_image, to_float, to_pil
from engine.messages import UserError, logger
from engine.outputs import NOT_FOR_METRICS, OutputFolder, free_name
from engine.preflight import Preflight, require
from engine.progress import progress
from engine.shipped_models import DEFAULT
from engine.world import World, distributed_world
from tokenizer.cli import add_tokenizer_flags, tokenizer_from, tokenizer_needs
from tokenizer.models.base import PictureDecoder, Tokenizer

DEFAULT_CLASSES = 8  # how many are drawn without --class-idx
DEFAULT_IMAGES = 40  # how many are drawn without --qual-num
DEFAULT_FOLDER = Path("results/samples")
PICTURE = Path("samples.png")  # what is written without arguments
PICTURE_CLASSES = 10  # its rows, without --class-idx
PICTURE_COLUMNS = 8
EXACT_PIXELS, FAST_PIXELS = "fp32", "bf16"  # values of --decode-precision
GRID = "grid.png"
GRID_COLUMNS = 8
SAMPLES_PER_CLASS = 2**32  # sample numbers kept for each class, so that no two classes share one


def chosen_classes(args: argparse.Namespace, generator: Generator, default: int = DEFAULT_CLASSES) -> list[int]:
    """The labels that --class-idx or --class-name asks for; the first `default` ones without either.

    Raises UserError for a class that the generator does not know.
    """
    if args.class_name:
        known = classes_of(generator)
        return [known.label_of(name) for name in args.class_name]
    if args.class_idx:
        return parse_classes(args.class_idx, generator.num_classes)
    return list(range(min(default, generator.num_classes)))


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
    word = classes.word_of(label)
    if word is None:
        return f"class_{label}"
    plain_name = re.sub(r"[\W_]+", "_", word.lower()).strip("_")
    return f"class_{label}_{plain_name}".removesuffix("_")


@dataclass(frozen=True)
class ClassSamples:
    """Samples `first` to `first + count` of a class, and the name of the folder that they go to."""

    label: int
    first: int
    count: int
    folder: str

    def files(self) -> list[str]:
        """The pictures, by their paths below the sample folder."""
        return [f"{self.folder}/{number:06d}.png" for number in range(self.count)]


def plan_classes(labels: list[int], count: int, classes: Classes) -> list[ClassSamples]:
    """`count` samples for each entry of a list of labels; a class that is named again gets further ones.

    Its folder is then numbered: `class_3`, `class_3_2`, ...
    """
    seen: Counter[int] = Counter()
    plan = []
    for label in labels:
        name = folder_name(label, classes)
        if seen[label]:
            name = f"{name}_{seen[label] + 1}"
        plan.append(ClassSamples(label, seen[label] * count, count, name))
        seen[label] += 1
    return plan


def draw_class(
    generator: Generator,
    decoder: Tokenizer | PictureDecoder,
    samples: ClassSamples,
    settings: SamplerSettings,
    batch_size: int,
) -> Tensor:
    """The images of one entry of the plan, uint8 (count,3,H,W)."""
    label, count = samples.label, samples.count
    sample_ids = torch.arange(count) + samples.first + label * SAMPLES_PER_CLASS
    labels = torch.full((count,), label)
    batches = sample_images(generator, decoder, labels, sample_ids, settings, batch_size)
    return torch.cat([images for _, images in batches])


def caption_of(images: str, settings: SamplerSettings) -> str:
    """What a grid shows, for whoever sees the picture alone."""
    return f"Generated: {images}; not selected; {settings.in_words()}."


def write_class(root: Path, samples: ClassSamples, images: Tensor, caption: str) -> None:
    """Writes each image as PNG, and at the end a grid of all, which says that the class is complete."""
    folder = root / samples.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(samples.files(), images, strict=True):
        to_pil(image).save(root / name)
    with atomic_file(folder / GRID) as temporary:
        save_grid(temporary, to_float(images), GRID_COLUMNS, caption=caption)


def is_complete(root: Path, samples: ClassSamples) -> bool:
    """Whether an earlier call with the same settings finished this class."""
    return all((root / name).is_file() for name in (*samples.files(), f"{samples.folder}/{GRID}"))


def sample_picture(args: argparse.Namespace, settings: SamplerSettings, world: World) -> None:
    """Writes one picture into the current folder, a row per class, and prints its path. Nothing is overwritten."""
    tokenizer = tokenizer_from(args, world.device)
    generator = gpt_from(args, tokenizer, world.device)
    settings = settings.fitted_to(generator, tokenizer)
    labels = chosen_classes(args, generator, PICTURE_CLASSES)
    columns = ceil_div(args.qual_num, len(labels)) if args.qual_num else PICTURE_COLUMNS
    known = classes_of(generator)
    plan = plan_classes(labels, columns, known)
    set_sampling(args, generator, settings, min(args.per_proc_batch_size, columns), world)

    # One process draws all: there are few.
    if not world.is_main:
        return
    decoder = tokenizer.picture_decoder() if args.decode_precision == FAST_PIXELS else tokenizer
    rows = [draw_class(generator, decoder, samples, settings, args.per_proc_batch_size) for samples in plan]
    path = free_name(PICTURE) if PICTURE.exists() else PICTURE
    with atomic_file(path) as temporary:
        names = [known.shown_name(label) for label in labels]
        caption = caption_of(f"one class per row, the first {columns} samples of each", settings)
        save_grid(temporary, to_float(torch.cat(rows)), columns, row_names=names, caption=caption)
    logger.info("%s: %d images by %s, rows: classes %s", path, len(labels) * columns, args.gpt_ckpt, labels)
    print(path.absolute())


def sample(args: argparse.Namespace, settings: SamplerSettings, world: World) -> None:
    """Writes the images of all classes; the ranks share the classes."""
    tokenizer = tokenizer_from(args, world.device)
    generator = gpt_from(args, tokenizer, world.device)
    settings = settings.fitted_to(generator, tokenizer)
    classes = chosen_classes(args, generator)
    num_images = args.qual_num or DEFAULT_IMAGES
    known = classes_of(generator)
    plan = plan_classes(classes, ceil_div(num_images, len(classes)), known)
    set_sampling(args, generator, settings, min(args.per_proc_batch_size, plan[0].count), world)

    # The folder, which may hold a part of the same samples.
    root = args.sample_dir
    settings_now = {
        "command": "autoregressive.sample",
        "tokenizer": tokenizer.provenance.fingerprint,
        "generator": generator.provenance.fingerprint,
        "precision": str(generator.dtype).removeprefix("torch."),
        "image_size": tokenizer.image_size,
        "noise_seed": args.noise_seed,
        "classes": classes,
        "images_per_class": plan[0].count,
        "sampler": settings.facts(),
        **generator.weight_facts,
    }
    if args.decode_precision == FAST_PIXELS:
        settings_now[NOT_FOR_METRICS] = f"--decode-precision {FAST_PIXELS}"
    pictures = [name for samples in plan for name in samples.files()]
    output = OutputFolder(root, "--sample-dir", settings_now, world, pictures)

    # The classes that are missing.
    decoder = tokenizer.picture_decoder() if args.decode_precision == FAST_PIXELS else tokenizer
    missing = [samples for samples in plan if not is_complete(root, samples)]
    world.barrier()  # no rank writes before all have looked
    for samples in progress(missing[world.rank :: world.size], "classes", world):
        images = draw_class(generator, decoder, samples, settings, args.per_proc_batch_size)
        first = f"samples {samples.first} to {samples.first + samples.count - 1} of class"
        write_class(root, samples, images, caption_of(f"{first} {known.shown_name(samples.label)}", settings))

    # The grid of the folder shows one image of each class.
    output.finish(pictures)
    if world.is_main:
        firsts = [read_image(root / samples.files()[0], hint="remove it: it is drawn again") for samples in plan]
        overview = to_float(torch.stack([image_tensor(picture) for picture in firsts]))
        names = [known.shown_name(samples.label) for samples in plan]
        caption = caption_of("the first sample of each class", settings)
        save_grid(root / GRID, overview, GRID_COLUMNS, image_names=names, caption=caption)
        written = sum(samples.count for samples in missing)
        there = sum(samples.count for samples in plan) - written
        before = f"; {there} were there before" if there else ""
        logger.info(
            "wrote %d images, %d for each entry of the class list, under %s%s", written, plan[0].count, root, before
        )


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # The networks.
    add_tokenizer_flags(parser, default=DEFAULT)
    add_gpt_flags(parser, default=DEFAULT)

    # Samples of which classes, and how many.
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--class-idx",
        help='class numbers, such as "22,388"; one that is named again gets further samples (default: the first eight)',
    )
    which.add_argument(
        "--class-name", action="append", help="name of a class, as its training folder is called; may be repeated"
    )
    parser.add_argument(
        "--qual-num",
        type=positive,
        help=f"number of images in total, divided among the classes (default {DEFAULT_IMAGES}; in one picture "
        f"{PICTURE_COLUMNS} per class)",
    )

    # Where they go, and how they are drawn.
    parser.add_argument(
        "--sample-dir",
        type=Path,
        help=f"folder of the images (default {DEFAULT_FOLDER}; without networks one picture, {PICTURE})",
    )
    parser.add_argument("--per-proc-batch-size", type=positive, default=32)
    parser.add_argument(
        "--decode-precision",
        default=EXACT_PIXELS,
        choices=[EXACT_PIXELS, FAST_PIXELS],
        help="of the pixels; bf16 (channels-last) is faster where the machine has it, and the folder is then refused "
        "as a set of images to measure",
    )
    add_device_flag(parser)
    add_sampler_flags(parser, is_demo=True)

    args = parse_with_sampler(parser)
    take_default_pair(parser, args)
    return args


def take_default_pair(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Without networks the default pair is used, and then without a folder one picture is written."""
    if (args.vq_ckpt is None) != (args.gpt_ckpt is None):
        parser.error("--vq-ckpt and --gpt-ckpt are given together; without both, a pair that comes with the program is")
    args.writes_picture = args.vq_ckpt is None and args.sample_dir is None
    if args.vq_ckpt is None:
        args.vq_ckpt = args.gpt_ckpt = DEFAULT
    if args.sample_dir is None:
        args.sample_dir = DEFAULT_FOLDER


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for both networks, and whether they know the classes."""
    preflight.device(args.device)
    tokenizer = tokenizer_needs(args, preflight)
    generator = gpt_needs(args, tokenizer, preflight)
    sampler_needs(args, generator, tokenizer, preflight)
    if generator is not None:
        with preflight.collecting():
            chosen_classes(args, generator)
    if args.writes_picture:
        preflight.output(PICTURE.parent, str(PICTURE))
    else:
        preflight.output(args.sample_dir, "--sample-dir")


def main() -> None:
    args = parse_args()
    settings = settings_of(args)
    require(args, lambda preflight: needs(args, preflight))
    with distributed_world(args.device) as world:
        run = sample_picture if args.writes_picture else sample
        run(args, settings, world)


if __name__ == "__main__":
    run_entry(main)
