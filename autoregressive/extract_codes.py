"""Turns images into codes with a trained tokenizer: the data set that a GPT is trained on.

    bash scripts/extract_code_c2i.sh --vq-ckpt runs/VQ_SS256 --code-path codes/VQ_SS256 --ten-crop
    python -m autoregressive.extract_codes --vq-ckpt runs/quickstart/tokenizer --code-path runs/quickstart/codes

Images are those of the tokenizer's own config unless --data or --data-path names others. Views of an image: its centre
crop, the centre crop and its mirror image (--flip), or ten crops of 1.1 times the size (--ten-crop, the published
recipe). A killed extraction continues with the same command; several processes share the work.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor, nn
from tqdm import tqdm

from autoregressive.codes import FORMAT, CodesManifest, CodeWriter
from engine.cli import entry_parser, positive, run_entry
from engine.data.config import DataConfig
from engine.data.crops import center_crop, ten_crop
from engine.data.images import image_tensor, to_float
from engine.data.sources import ImageSource, has_split, open_source, read_source
from engine.messages import UserError, logger
from engine.world import World, distributed_world
from tokenizer.cli import add_image_flags, add_tokenizer_flags, images_from, tokenizer_from
from tokenizer.loading import streams_of

NUM_VIEWS = {"centre": 1, "flip": 2, "ten-crop": 10}


def views_of(
    source: ImageSource, index: int, image_size: int, views: str, skip_broken: bool = False
) -> tuple[Tensor, int]:
    """The views of one image, uint8 (num_views,3,H,W), and its label; an unreadable image gives way to the next one."""
    image, index, _ = read_source(source, index, skip_broken)
    if views == "ten-crop":
        crops = ten_crop(image, image_size)
    else:
        crops = [center_crop(image, image_size)]
        crops += [ImageOps.mirror(crops[0])] if views == "flip" else []
    return torch.stack([image_tensor(crop) for crop in crops]), int(source.labels[index])


@torch.inference_mode()
def extract_split(
    tokenizer: nn.Module, data: DataConfig, split: str, views: str, code_path: Path, batch_size: int, world: World
) -> None:
    """Extracts one split; finished splits are left alone."""
    source = open_source(data, split)
    manifest = CodesManifest(
        format=FORMAT,
        fingerprint=tokenizer.provenance.fingerprint,
        tokenizer=tokenizer.provenance.path,
        split=split,
        data=source.name,
        num_images=len(source),
        num_views=NUM_VIEWS[views],
        num_tokens=tokenizer.num_tokens,
        codebook_size=tokenizer.quantizer.codebook_size,
        image_size=tokenizer.image_size,
        views=views,
        class_names=list(source.class_names),
        streams=streams_of(tokenizer),
    )
    block = max(1, batch_size // NUM_VIEWS[views])
    writer = CodeWriter(code_path, manifest, block, world.rank)
    if writer.finished():
        logger.info("%s: %s images are already there", writer.folder, len(source))
        return
    if world.is_main:
        writer.create(source.labels)
    world.barrier()
    pending = writer.pending(world.rank, world.size)
    for rows in tqdm(pending, desc=f"codes of {split}", unit="batch", disable=None if world.is_main else True):
        items = [views_of(source, i, tokenizer.image_size, views, data.skip_broken) for i in rows]
        indices = tokenizer.encode(to_float(torch.cat([images for images, _ in items]).to(world.device))).indices
        writer.write(rows, indices.unflatten(0, (len(rows), NUM_VIEWS[views])), [label for _, label in items])
    world.barrier()
    if world.is_main:
        writer.finish()
        sizes = zip(writer.shape, ("images", "views", "tokens", "indices"), strict=False)
        logger.info("%s: %s", writer.folder, " x ".join(f"{size} {name}" for size, name in sizes))
    world.barrier()


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser)
    parser.add_argument("--code-path", required=True, type=Path, help="folder for the codes; one sub-folder per split")
    parser.add_argument("--split", action="append", choices=["train", "val"], help="default: every split the data has")
    add_image_flags(parser)
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--ten-crop", action="store_const", const="ten-crop", dest="views", help="ten crops an image")
    views.add_argument(
        "--flip", action="store_const", const="flip", dest="views", help="centre crop and its mirror image"
    )
    parser.add_argument("--batch-size", type=positive, default=32, help="views at a time")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.set_defaults(views="centre")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with distributed_world(args.device, tf32=False) as world:
        tokenizer = tokenizer_from(args, world.device)
        data = images_from(args, tokenizer)
        splits = args.split or [s for s in ("train", "val") if has_split(data, s)]
        if not splits:
            raise UserError("no images: give --data-path (and --val-path), or --data with a packaged set")
        for split in splits:
            extract_split(tokenizer, data, split, args.views, args.code_path, args.batch_size, world)


if __name__ == "__main__":
    run_entry(main)
