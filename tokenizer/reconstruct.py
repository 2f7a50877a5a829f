"""Reconstructs images with a trained tokenizer, and writes pairs of PNG files and one grid.

    bash scripts/reconstruction.sh --vq-ckpt runs/VQ_SS256 --qualitative --data-path my_photos/ --sample-dir results/rec
    python -m tokenizer.reconstruct --vq-ckpt runs/quickstart/tokenizer --data photos --num-images 8
    python -m tokenizer.reconstruct --vq-ckpt runs/quickstart-flexible/tokenizer --data mnist5k --num-tokens 4

--data-path can be any folder: it is searched for image files, and other files are counted and ignored. Every image is
center-cropped to the size of the tokenizer, turned into codes, and decoded again. For cats/tom.jpg, for example, the
sample folder receives cats/tom_gt.png (the original) and cats/tom.png (its reconstruction). Images of a packaged set
have numbers: 000007_gt.png and 000007.png. grid.png shows the first images.
A tokenizer of flexible length also draws lengths.png: the same images from 1, 2, 4, ... of their tokens; --num-tokens k
makes all pictures from the first k.
A folder of the same settings is written again; any other one that is not empty is refused. `evaluations.measure` takes
the folder as a set of reconstructions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.assets import AssetError, AssetsConfig
from engine.cli import add_device_flag, entry_parser, not_negative, positive, run_entry
from engine.config import load_config
from engine.data.base import ImageSource
from engine.data.config import DataConfig
from engine.data.folders import LooseSource
from engine.data.grids import save_grid
from engine.data.images import to_float, to_pil, to_uint8
from engine.data.samples import center_batch
from engine.data.sources import open_source, source_names
from engine.finite import numbered
from engine.image_metrics import psnr
from engine.messages import UserError, logger
from engine.outputs import OutputFolder
from engine.preflight import Preflight, require
from engine.progress import progress
from engine.registry import extended
from engine.world import World, distributed_world
from tokenizer.cli import (
    add_reconstructing_flags,
    add_skip_flag,
    decoded_facts,
    reconstructing_from,
    reconstructing_needs,
)
from tokenizer.frozen.lpips import lpips_network
from tokenizer.losses.perceptual import LPIPSLoss
from tokenizer.models.base import Tokenizer
from tokenizer.models.reconstructing import Reconstructing
from tokenizer.pair_names import ORIGINAL, pair_names

GRID_BATCHES = 4  # batches whose first images are in the grid
GRID_COLUMNS = 8  # images of a batch that are in the grid


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # What is reconstructed.
    add_reconstructing_flags(parser)
    parser.add_argument("--data-path", type=Path, help="folder to search for images")
    packaged = source_names(packaged_only=True)
    add_skip_flag(parser)
    parser.add_argument("--data", help=f"instead of --data-path: held-out images of a packaged data set ({packaged})")
    parser.add_argument(
        "--num-images", type=not_negative, default=0, help="take only this many images, from the start; 0 = all"
    )

    # Where it goes, and how.
    parser.add_argument("--sample-dir", type=Path, default=Path("results/reconstructions"))
    parser.add_argument("--per-proc-batch-size", type=positive, default=16)
    parser.add_argument(
        "--qualitative",
        action="store_true",
        help="the mode of this command; accepted because published commands have it",
    )
    parser.add_argument("--lpips", action="store_true", help="add the LPIPS of each pair to its file names")
    parser.add_argument(
        "--clear-cache", action="store_true", help="not used: there are no intermediate files, and the pictures stay"
    )
    add_device_flag(parser)
    return parser.parse_args()


def open_images(args: argparse.Namespace) -> ImageSource:
    """The images that the flags name. Raises UserError unless exactly one of the two flags is given."""
    if (args.data_path is None) == (args.data is None):
        raise UserError("give either --data-path FOLDER or --data NAME")
    if args.data_path is not None:
        return LooseSource(args.data_path, "--data-path", args.skip_broken)
    return open_source(extended(DataConfig(name=args.data)), "val")


def lpips_or_none(device: torch.device) -> nn.Module | None:
    """LPIPS (VGG); None with a warning that names the file where its weights cannot be had."""
    try:
        network, _ = lpips_network(load_config(AssetsConfig))
    except AssetError as error:
        logger.warning("no LPIPS score in the file names: %s", error)
        return None
    return LPIPSLoss(network).to(device)


def write_pair(folder: Path, name: str, original: Tensor, reconstruction: Tensor) -> None:
    """Writes two uint8 images (3,H,W)."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    to_pil(original).save(folder / f"{name}{ORIGINAL}.png")
    to_pil(reconstruction).save(folder / f"{name}.png")


def write_grid(path: Path, batches: list[tuple[Tensor, Tensor]], between: str) -> None:
    """Writes a row of originals above one of reconstructions per batch; `between` says what the latter were made of.

    Batches of another width than the first are left out.
    """
    width = len(batches[0][0])
    rows = [
        torch.cat([originals, reconstructions]) for originals, reconstructions in batches if len(originals) == width
    ]
    names = ["original", "reconstruction"] * len(rows)
    caption = f"Originals above what {between} alone give back. The first images of each batch, not selected."
    save_grid(path, to_float(torch.cat(rows)), width, row_names=names, caption=caption)


@torch.inference_mode()
def write_lengths(path: Path, tokenizer: Tokenizer, originals: Tensor) -> None:
    """Writes a row of originals uint8 (B,3,H,W), and below it one of what comes back of each number of tokens."""
    codes = tokenizer.encode(to_float(originals).to(tokenizer.device)).indices
    lengths = [*tokenizer.shown_lengths, tokenizer.num_tokens]
    rows = [to_uint8(tokenizer.decode_indices(codes[:, :length])).cpu() for length in lengths]
    names = ["original", *(f"{length} token{'s' if length > 1 else ''}" for length in lengths)]
    caption = "Originals, and what their first tokens alone give back. The first images, not selected."
    save_grid(path, to_float(torch.cat([originals, *rows])), len(originals), row_names=names, caption=caption)


def lpips_of(lpips: nn.Module, original: Tensor, reconstruction: Tensor, device: torch.device) -> float:
    """The LPIPS of one pair of uint8 images (3,H,W)."""
    images = to_float(reconstruction[None]).to(device)
    references = to_float(original[None]).to(device)
    return lpips(images, references).item()


def scored_name(name: str, score: float | None) -> str:
    """The name of a pair, without the suffixes of its files; `score` is its LPIPS, None without --lpips."""
    return name if score is None else f"{name}_lpips{score:.4f}"


def names_of_set(names: Sequence[str], scores: dict[int, float] | None, world: World) -> list[str]:
    """The files of all reconstructions of this run, as opposed to what else lies in the folder. A collective.

    `scores` are {number of an image: LPIPS} of the images of this rank; None without --lpips. An earlier run may have
    left files of slightly other scores, which other names than these are.
    """
    if scores is None:
        return [f"{name}.png" for name in names]
    row = torch.zeros(len(names), device=world.device)  # float32, as LPIPS is: a sum with zeros changes no digit
    for image_id, score in scores.items():
        row[image_id] = score
    return [f"{scored_name(name, score)}.png" for name, score in zip(names, world.sum(row).tolist(), strict=True)]


def reconstruct(
    tokenizer: Reconstructing,
    source: ImageSource,
    image_ids: range,
    names: Sequence[str],
    skip_broken: bool,
    lpips: nn.Module | None,
    folder: Path,
    device: torch.device,
) -> tuple[Tensor, Tensor, dict[int, float]]:
    """Writes the pairs of one batch of images; `names` are those of the pairs of all images.

    Returns (originals, reconstructions), uint8 (B,3,H,W) on the CPU, and {number of an image: LPIPS}, empty without
    `lpips`.
    """
    # Images -> codes, or latents -> images.
    originals = center_batch(source, tokenizer.image_size, image_ids, skip_broken)
    with numbered("image", image_ids):
        reconstructions = to_uint8(tokenizer.reconstruct(to_float(originals).to(device)).images).cpu()

    # One pair of files per image.
    scores: dict[int, float] = {}
    for image_id, original, reconstruction in zip(image_ids, originals, reconstructions, strict=True):
        if lpips is not None:
            scores[image_id] = lpips_of(lpips, original, reconstruction, device)
        write_pair(folder, scored_name(names[image_id], scores.get(image_id)), original, reconstruction)
    return originals, reconstructions, scores


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the tokenizer, the images, and a place for the pictures."""
    preflight.device(args.device)
    reconstructing_needs(args, preflight)
    with preflight.collecting():
        if args.data is not None and args.data_path is None:
            preflight.images(extended(DataConfig(name=args.data)), "val")
        else:
            images = open_images(args)
            preflight.ready.append(f"--data-path: {len(images):,} images in {args.data_path}")
    preflight.output(args.sample_dir, "--sample-dir")


@torch.inference_mode()
def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    source = open_images(args)
    with distributed_world(args.device) as world:
        tokenizer = reconstructing_from(args, world.device)
        if isinstance(source, LooseSource):
            source.decoding = tokenizer.provenance.config.data.decoding
        lpips = lpips_or_none(world.device) if args.lpips else None

        # The folder, which may hold pictures of the same settings.
        folder = args.sample_dir
        num_images = min(len(source), args.num_images) if args.num_images else len(source)
        names = pair_names(source, num_images)
        settings = {
            "command": "tokenizer.reconstruct",
            "tokenizer": tokenizer.provenance.fingerprint,
            "image_size": tokenizer.image_size,
            "noise_seed": args.noise_seed,
            "images": source.identity(),
            "num_images": num_images,
            "lpips": lpips is not None,
            **decoded_facts(tokenizer),
        }
        output = OutputFolder(folder, "--sample-dir", settings, world)

        # Every rank takes its part of the images.
        rank_images = range(num_images)[world.rank :: world.size]
        batch_size = args.per_proc_batch_size
        decibels: list[float] = []
        lpips_scores: dict[int, float] = {}
        grid_batches: list[tuple[Tensor, Tensor]] = []
        for start in progress(range(0, len(rank_images), batch_size), "batches", world):
            # Images -> codes -> images, as uint8 on the CPU.
            image_ids = rank_images[start : start + batch_size]
            originals, reconstructions, batch_scores = reconstruct(
                tokenizer, source, image_ids, names, args.skip_broken, lpips, folder, world.device
            )
            lpips_scores |= batch_scores
            decibels += psnr(reconstructions, originals).tolist()
            if len(grid_batches) < GRID_BATCHES:
                grid_batches.append((originals[:GRID_COLUMNS], reconstructions[:GRID_COLUMNS]))

        # The folder says which pictures are the set; a grid is for people.
        output.finish(names_of_set(names, lpips_scores if lpips is not None else None, world))
        if world.is_main:
            between = "their codes" if tokenizer.quantizer is not None else "the latents of a network without codes"
            write_grid(folder / "grid.png", grid_batches, between)
            if "flexible" in tokenizer.capabilities:
                write_lengths(folder / "lengths.png", tokenizer, grid_batches[0][0])
            if args.clear_cache:
                logger.info("--clear-cache: this mode writes no intermediate files; nothing was removed")
            mean = f"mean PSNR of {len(decibels)} of them {sum(decibels) / len(decibels):.2f} dB"
            logger.info(
                "%d pairs and grid.png (originals above reconstructions) under %s; %s", num_images, folder, mean
            )


if __name__ == "__main__":
    run_entry(main)
