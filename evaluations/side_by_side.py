"""Draws pictures of a folder beside their reconstructions by one or several tokenizers, with names: a figure.

    python -m evaluations.side_by_side --vq-ckpt runs/VQ_SS256 --vq-ckpt runs/VQ_BL256 --data-path my_photos \\
        --sample-dir results/figure
    python -m evaluations.side_by_side --vq-ckpt runs/WeTok_192 --vq-ckpt runs/WeTok_24 --label 192x --label 24x \\
        --data-path tokbench_pictures --image-size 512 --fit pad --sample-dir results/text512
    python -m evaluations.side_by_side --vq-ckpt runs/WeTok_24 --data-path coco/val2017 --num-images 6 \\
        --sample-dir results/coco

Each row of `side_by_side.png` is one picture: the original, then what each tokenizer makes of it, with the PSNR below.
The pictures are taken in the order of their names, and each also lies in a file of its own. With --image-size 512
convolutional tokenizers take pictures of 512 px, whatever they were trained for; others refuse. --fit pad shows whole
pictures on black instead of their central squares. So WeTok (arXiv:2508.05599) shows text at 512 px (figure 9) and
pictures of COCO (figure 7). The files are to look at: evaluations.reconstruction measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from engine.cli import add_device_flag, entry_parser, positive, run_entry
from engine.data.crops import center_crop, pad_resized
from engine.data.folders import LooseSource
from engine.data.grids import save_grid
from engine.data.images import image_tensor, to_float, to_pil, to_uint8
from engine.data.sources import read_source
from engine.devices import pick_device
from engine.finite import numbered
from engine.image_metrics import MAX_PSNR, psnr
from engine.messages import UserError, logger
from engine.outputs import NOT_FOR_METRICS, OutputFolder
from engine.preflight import Preflight, require
from engine.progress import progress
from engine.world import World
from tokenizer.cli import (
    add_label_flag,
    add_reconstructing_flags,
    add_skip_flag,
    decoded_facts,
    flags_of_tokenizer,
    reconstructing_from,
    reconstructing_needs,
    tokenizer_labels,
)
from tokenizer.models.reconstructing import Reconstructing
from tokenizer.pair_names import ORIGINAL, pair_names

FIGURE = "side_by_side.png"
FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": center_crop, "pad": pad_resized}


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_reconstructing_flags(parser, several=True)
    add_label_flag(parser)

    # The pictures.
    parser.add_argument("--data-path", type=Path, required=True, help="folder to search for images")
    parser.add_argument(
        "--num-images", type=positive, default=8, help="take only this many, from the start (default 8)"
    )
    parser.add_argument(
        "--fit", choices=list(FITS), default="crop",
        help="how a picture becomes a square: its center (default), or whole on black",
    )  # fmt: skip
    add_skip_flag(parser)

    # Where they go.
    parser.add_argument("--sample-dir", type=Path, required=True, help=f"folder for {FIGURE} and the single pictures")
    add_device_flag(parser)
    return parser.parse_args()


def squares(source: LooseSource, count: int, size: int, fit: str, skip_broken: bool) -> list[Tensor]:
    """The first pictures of a folder as squares, uint8 (3,size,size)."""
    return [image_tensor(FITS[fit](read_source(source, number, skip_broken)[0], size)) for number in range(count)]


def reconstructed(tokenizer: Reconstructing, images: Sequence[Tensor], title: str, world: World) -> list[Tensor]:
    """Each picture uint8 (3,S,S) to codes and back, one at a time: large ones need memory."""
    reconstructions = []
    for number, image in enumerate(progress(images, title, world, "image")):
        with numbered("image", [number]):
            decoded = tokenizer.reconstruct(to_float(image[None]).to(world.device)).images
            reconstructions.append(to_uint8(decoded)[0].cpu())
    return reconstructions


def decibels(reconstruction: Tensor, original: Tensor) -> str:
    """The PSNR of a picture, for people."""
    value = psnr(reconstruction[None], original[None]).item()
    return "identical" if value >= MAX_PSNR else f"{value:.1f} dB"


@torch.inference_mode()
def draw(args: argparse.Namespace) -> None:
    """Writes the figure and the single pictures."""
    world = World(0, 1, 0, pick_device(args.device))
    labels = tokenizer_labels(args)
    source = LooseSource(args.data_path, "--data-path", args.skip_broken)
    count = min(args.num_images, len(source))
    names = pair_names(source, count)

    # Everything that may not fit comes before the first file.
    tokenizers = [reconstructing_from(flags_of_tokenizer(args, number), world.device) for number in range(len(labels))]
    sizes = {tokenizer.image_size for tokenizer in tokenizers}
    if len(sizes) > 1:
        raise UserError(
            f"the tokenizers are for images of {', '.join(map(str, sorted(sizes)))} px; give --image-size, or compare "
            "those of one size"
        )
    size = sizes.pop()
    settings = {
        "command": "evaluations.side_by_side",
        "tokenizers": [tokenizer.provenance.fingerprint for tokenizer in tokenizers],
        "labels": labels,
        "image_size": size,
        "noise_seed": args.noise_seed,
        "images": source.identity(),
        "num_images": count,
        "fit": args.fit,
        **decoded_facts(*tokenizers),
        NOT_FOR_METRICS: "a few pictures beside one another; evaluations.reconstruction measures",
    }
    output = OutputFolder(args.sample_dir, "--sample-dir", settings, world)

    # One column per tokenizer, from left to right.
    originals = squares(source, count, size, args.fit, args.skip_broken)
    columns = [originals]
    for label, tokenizer in zip(labels, tokenizers, strict=True):
        columns.append(reconstructed(tokenizer, originals, label, world))

    texts = []
    for name, original, *images in zip(names, *columns, strict=True):
        texts += [
            name,
            *(f"{label} {decibels(image, original)}" for label, image in zip(labels, images, strict=True)),
        ]
    rows = torch.stack([image for images in zip(*columns, strict=True) for image in images])
    save_grid(args.sample_dir / FIGURE, to_float(rows), 1 + len(labels), image_names=texts)

    files = []
    for name, original, *reconstructions in zip(names, *columns, strict=True):
        files += [(f"{name}{ORIGINAL}.png", original)]
        files += [(f"{name}_{number}.png", image) for number, image in enumerate(reconstructions, start=1)]
    for file, image in files:
        path = args.sample_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil(image).save(path)
    output.finish([file for file, _ in files])
    logger.info("%s: %d pictures, each beside %d reconstruction(s)", args.sample_dir / FIGURE, count, len(labels))


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for all tokenizers, the pictures, and a place for the figure."""
    preflight.device(args.device)
    for number in range(len(args.vq_ckpt)):
        reconstructing_needs(flags_of_tokenizer(args, number), preflight)
    with preflight.collecting():
        images = LooseSource(args.data_path, "--data-path", args.skip_broken)
        preflight.ready.append(f"--data-path: {len(images):,} images in {args.data_path}")
    with preflight.collecting():
        tokenizer_labels(args)
    preflight.output(args.sample_dir, "--sample-dir")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    draw(args)


if __name__ == "__main__":
    run_entry(main)
