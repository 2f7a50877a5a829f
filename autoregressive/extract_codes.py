"""Turns images into codes with a trained tokenizer: the data set that a generator is trained on.

    bash scripts/extract_code_c2i.sh --vq-ckpt runs/VQ_SS256 --code-path codes/VQ_SS256 --ten-crop
    python -m autoregressive.extract_codes --vq-ckpt runs/quickstart/tokenizer --code-path runs/quickstart/codes

The images are those of the tokenizer's own config, unless --data or --data-path names others. By default, only the
center crop of each image is encoded; with --flip, also its mirror image; with --ten-crop (the published recipe), ten
crops of the image at 1.1 times the size. To continue a killed extraction, run the same command again. Several processes
share the work. In each, loader processes read the next images while the tokenizer encodes (--num-workers).
"""

from __future__ import annotations

import argparse
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoregressive.code_writer import CodeWriter
from autoregressive.codes import FORMAT, CodesManifest, CodeStore, code_dtype
from autoregressive.views import DEFAULT_VIEWS, VIEWS
from engine.checkpoint.code_maker import DECODER_OF
from engine.cli import add_device_flag, entry_parser, not_negative, positive, run_entry
from engine.cores import usable_cores
from engine.data.classes import Classes, with_labels_of
from engine.data.config import DataConfig
from engine.data.decoding import Decoding
from engine.data.identity import facts_of
from engine.data.images import image_tensor, to_float
from engine.data.loader import Note, batches_in_order
from engine.data.sources import ImageSource, has_split, open_source, read_source
from engine.finite import numbered
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from engine.progress import progress
from engine.world import World, distributed_world
from tokenizer.cli import (
    add_image_flags,
    add_tokenizer_flags,
    images_from,
    images_to_check,
    tokenizer_from,
    tokenizer_needs,
)
from tokenizer.models.base import Tokenizer


def views_of(source: ImageSource, index: int, image_size: int, views: str, skip_broken: bool) -> tuple[Tensor, int]:
    """The views of one image, uint8 (num_views,3,H,W), and its label; an unreadable image gives way to the next one."""
    image, index, _ = read_source(source, index, skip_broken)
    crops = VIEWS[views].crops(image, image_size)
    return torch.stack([image_tensor(crop) for crop in crops]), int(source.labels[index])


WRITES_AHEAD = 8  # blocks that may be on their way to disk


@dataclass(frozen=True)
class BlockReader:
    """Reads the views of a block of images."""

    source: ImageSource
    image_size: int
    views: str  # a key of VIEWS
    skip_broken: bool

    def __call__(self, rows: range, note: Note) -> tuple[Tensor, list[int]]:
        """The views of images `rows`, uint8 (images * views, 3, H, W), and the labels of the images."""
        items = []
        for index in rows:
            note(index)
            items.append(views_of(self.source, index, self.image_size, self.views, self.skip_broken))
        return torch.cat([views for views, _ in items]), [label for _, label in items]


def manifest_of(tokenizer: Tokenizer, source: ImageSource, split: str, views: str, decoding: Decoding) -> CodesManifest:
    """The facts of the codes that `tokenizer` makes of one split."""
    quantizer = tokenizer.quantizer
    classes = Classes.of(source)
    return CodesManifest(
        format=FORMAT,
        # The tokenizer, and the sizes of its codes.
        fingerprint=tokenizer.provenance.fingerprint,
        codes_fingerprint=tokenizer.codes_fingerprint(),
        tokenizer=tokenizer.provenance.path,
        image_size=tokenizer.image_size,
        num_tokens=tokenizer.num_tokens,
        codebook_size=quantizer.codebook_size,
        codebook_sizes=list(quantizer.group_sizes) if quantizer.num_groups > 1 else [],
        # The images, and the views that are taken of each.
        split=split,
        data=source.name,
        num_images=len(source),
        class_names=list(classes.names),
        classes_are_named=classes.are_named,
        image_facts=facts_of(source),
        decoding=decoding.suffix().strip(),
        views=views,
        num_views=VIEWS[views].num_views,
    )


def open_splits(data: DataConfig, splits: list[str], code_path: Path) -> dict[str, ImageSource]:
    """The images of each split; held-out ones get the labels of the training images, or of their codes beside them.

    Raises UserError for held-out images of other classes, before anything is extracted.
    """
    sources = {split: open_source(data, split) for split in splits}
    expected = Classes.of(sources["train"]) if "train" in sources else classes_of_codes(code_path)
    if "val" in sources and expected is not None:
        sources["val"] = with_labels_of(sources["val"], expected)
    return sources


def classes_of_codes(code_path: Path) -> Classes | None:
    """The classes of the codes of training images that are there already; None where there are none."""
    is_finished = (code_path / "train" / "manifest.json").is_file()
    return CodeStore(code_path, "train").classes if is_finished else None


@torch.inference_mode()
def extract_split(
    tokenizer: Tokenizer,
    source: ImageSource,
    data: DataConfig,
    split: str,
    views: str,
    code_path: Path,
    batch_size: int,
    world: World,
) -> None:
    """Extracts `source`, a split of `data`; finished ones are left alone.

    All ranks call this; `batch_size` counts views.
    """
    manifest = manifest_of(tokenizer, source, split, views, data.decoding)
    block = max(1, batch_size // manifest.num_views)
    maker = replace(manifest.maker, decoder_of=tuple(tokenizer.provenance.stamp.get(DECODER_OF, ())))
    writer = CodeWriter(code_path, manifest, block, world.rank, maker)
    if writer.finished():
        logger.info("%s: %s images are already there", writer.folder, len(source))
        return

    # The arrays must be there before anybody writes into them.
    if world.is_main:
        writer.create(source.labels)
    world.barrier()

    # Each rank encodes its blocks, all views of a block as one batch, while the next blocks are read and those before
    # are brought to disk, in their order.
    pending = writer.pending(world.rank, world.size)
    read = BlockReader(source, tokenizer.image_size, views, data.skip_broken)
    num_workers = min(data.num_workers, usable_cores(), len(pending))
    blocks = batches_in_order(read, pending, num_workers, world.device, source.where)
    with writer, ThreadPoolExecutor(max_workers=1) as disk:
        on_their_way: deque[Future] = deque()
        for rows in progress(pending, f"codes of {split}", world, unit="batch"):
            images, labels = next(blocks)
            with numbered("image", [index for index in rows for _ in range(manifest.num_views)]):
                indices = tokenizer.encode(to_float(images.to(world.device, non_blocking=True))).indices
            codes = indices.unflatten(0, (len(rows), manifest.num_views)).cpu()
            on_their_way.append(disk.submit(writer.write, rows, codes, labels))
            if len(on_their_way) > WRITES_AHEAD:
                on_their_way.popleft().result()
        for written in on_their_way:
            written.result()

    world.barrier()
    if world.is_main:
        writer.finish()
        sizes = zip(writer.shape, ("images", "views", "tokens", "indices"), strict=False)
        logger.info("%s: %s", writer.folder, " x ".join(f"{size} {name}" for size, name in sizes))
    world.barrier()


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # From where to where.
    add_tokenizer_flags(parser)
    parser.add_argument(
        "--code-path", required=True, type=Path, help="folder for the codes, with one subfolder per split"
    )
    parser.add_argument(
        "--split",
        action="append",
        choices=["train", "val"],
        help="split to extract; may be repeated (default: every split of the data)",
    )
    add_image_flags(parser)

    # Which views of an image.
    view_flags = parser.add_mutually_exclusive_group()
    for name, views in VIEWS.items():
        if views.flag is not None:
            view_flags.add_argument(views.flag, action="store_const", const=name, dest="views", help=views.help)

    # How it runs.
    parser.add_argument("--batch-size", type=positive, default=32, help="number of views (crops) per batch")
    parser.add_argument(
        "--num-workers",
        type=not_negative,
        help="loader processes per process, at most one per core; 0 = read images between the batches "
        "(default: data.num_workers)",
    )
    add_device_flag(parser)
    parser.set_defaults(views=DEFAULT_VIEWS)
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the tokenizer, its images, and room for the codes."""
    # The tokenizer, and its images.
    preflight.device(args.device)
    tokenizer = tokenizer_needs(args, preflight)
    num_bytes = 0
    with preflight.collecting():
        data = images_to_check(args, tokenizer)
        if data is not None:
            surveys = {split: preflight.images(data, split) for split in splits_of(args, data)}

            # Held-out images must have the classes that `open_splits` will expect.
            is_train = "train" in surveys
            expected = Classes.of_survey(surveys["train"]) if is_train else classes_of_codes(args.code_path)
            preflight.classes(surveys.get("val"), expected)

            # Room for the codes.
            num_images = sum(survey.num_images or 0 for survey in surveys.values() if survey is not None)
            num_bytes = num_images * VIEWS[args.views].num_views * bytes_per_view(tokenizer)
    preflight.output(args.code_path, "--code-path", num_bytes)


def bytes_per_view(tokenizer: Tokenizer | None) -> int:
    """Bytes of the codes of one view of an image; 0 for a tokenizer that is missing."""
    if tokenizer is None:
        return 0
    quantizer = tokenizer.quantizer
    return tokenizer.num_tokens * quantizer.num_groups * np.dtype(code_dtype(max(quantizer.group_sizes))).itemsize


def splits_of(args: argparse.Namespace, data: DataConfig) -> list[str]:
    """The splits to extract. Raises UserError if there are none."""
    splits = args.split or [split for split in ("train", "val") if has_split(data, split)]
    if not splits:
        raise UserError("no images: give --data-path (and --val-path), or --data with a packaged set")
    return splits


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    with distributed_world(args.device, tf32=False) as world:
        tokenizer = tokenizer_from(args, world.device)
        data = images_from(args, tokenizer)
        if args.num_workers is not None:
            data = replace(data, num_workers=args.num_workers)
        splits = splits_of(args, data)
        for split, source in open_splits(data, splits, args.code_path).items():
            extract_split(tokenizer, source, data, split, args.views, args.code_path, args.batch_size, world)


if __name__ == "__main__":
    run_entry(main)
