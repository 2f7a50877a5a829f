"""Checks extracted codes from end to end, and says what is in them.

    bash scripts/check_code_c2i.sh --code-path codes/VQ_SS256
    bash scripts/check_code_c2i.sh --code-path codes/VQ_SS256 --vq-ckpt runs/VQ_SS256 --num-images 256
    python -m autoregressive.check_codes --code-path runs/quickstart/codes --vq-ckpt runs/quickstart/tokenizer

Shapes, sizes and the tokenizer of codes are checked whenever they are opened; this command reads all of them. Every
code must lie in its codebook and every label among the classes. It tells the fraction of the codebook that is in use,
and how many images have the codes of another one. With --vq-ckpt, the codes must be of this tokenizer, and evenly
spread images are encoded again: their codes must be those that are stored. Code 2 means that something is wrong.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autoregressive.codes import CodesError, CodeStore
from autoregressive.views import VIEWS
from engine.arithmetic import ceil_div
from engine.cli import add_device_flag, entry_parser, positive, run_entry
from engine.data.config import DataConfig
from engine.data.images import image_tensor, to_float
from engine.data.sources import ImageSource, open_source, read_source
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from engine.progress import progress
from engine.world import World, distributed_world
from tokenizer.cli import add_image_flags, add_tokenizer_flags, images_from, tokenizer_from, tokenizer_needs
from tokenizer.models.base import Tokenizer

SPLITS = ("train", "val")
BLOCK = 4096  # images that are read at a time
BATCH = 16  # images that are encoded at a time
# Codes may differ where two of them are nearly as near, because batches of another size are rounded in another way.
MIN_EQUAL = 0.98


# ------------------------------------------------------------------------------------------------ what is stored
@dataclass(frozen=True)
class Contents:
    """What all codes of a split are."""

    used: list[float]  # fraction of the codes that occur, for each index of a token
    repeated: int  # images whose codes in the first view are those of an earlier image
    images_per_class: tuple[int, int]  # the fewest and the most

    def text(self) -> str:
        """In a line."""
        used = " and ".join(f"{fraction:.1%}" for fraction in self.used)
        fewest, most = self.images_per_class
        return f"{used} of the codes in use; {self.repeated:,} images repeat another; {fewest:,} to {most:,} per class"


def read_all(store: CodeStore, world: World) -> Contents:
    """Reads all codes of a split. Raises CodesError for codes and labels that cannot be."""
    sizes = np.array(store.manifest.index_sizes)
    num_classes = len(store.class_names)
    if len(store) and not 0 <= store.labels.min() <= store.labels.max() < num_classes:
        raise CodesError(
            f"{store.folder / 'labels.npy'} has labels from {store.labels.min()} to {store.labels.max()}; there are "
            f"{num_classes} classes"
        )

    is_used = [np.zeros(size, dtype=bool) for size in sizes]
    seen: set[bytes] = set()
    for start in progress(range(0, len(store), BLOCK), f"codes of {store.manifest.split}", world, unit="block"):
        codes = np.asarray(store.codes[start : start + BLOCK])
        columns = codes.reshape(-1, len(sizes))
        _require_codes(store, columns, sizes, start, codes.shape[0])
        for index, used in enumerate(is_used):
            used[columns[:, index]] = True
        seen.update(view.tobytes() for view in codes[:, 0])

    counts = np.bincount(store.labels, minlength=num_classes)
    fractions = [float(used.mean()) for used in is_used]
    return Contents(fractions, len(store) - len(seen), (int(counts.min()), int(counts.max())))


def _require_codes(store: CodeStore, columns: np.ndarray, sizes: np.ndarray, start: int, num_images: int) -> None:
    """Raises CodesError where a code is not in its codebook. `columns` (tokens, indices) are those of a block."""
    is_wrong = ((columns < 0) | (columns >= sizes)).any(1)
    if is_wrong.any():
        first = int(is_wrong.argmax())
        image = start + first // (len(columns) // num_images)
        raise CodesError(
            f"{store.folder / 'codes.npy'} is damaged: image {image} has the code {columns[first].tolist()} of "
            f"{' x '.join(map(str, sizes))}; remove the folder and extract again"
        )


# ------------------------------------------------------------------------------------------------ encoded again
@torch.inference_mode()
def equal_fraction(
    store: CodeStore, source: ImageSource, tokenizer: Tokenizer, data: DataConfig, num_images: int, world: World
) -> float:
    """The fraction of stored codes that `tokenizer` makes again of `num_images` evenly spread images."""
    views = VIEWS[store.manifest.views]
    numbers = range(0, len(store), ceil_div(len(store), num_images))
    equal, total = 0, 0
    for start in progress(range(0, len(numbers), BATCH), "encoded again", world, unit="batch"):
        rows = list(numbers[start : start + BATCH])
        images = [read_source(source, index, data.skip_broken)[0] for index in rows]
        crops = [views.crops(image, tokenizer.image_size)[views.center] for image in images]
        batch = to_float(torch.stack([image_tensor(crop) for crop in crops]).to(world.device))
        indices = tokenizer.encode(batch).indices.cpu().numpy()
        is_equal = indices == np.asarray(store.codes[rows, views.center])
        equal += int(is_equal.sum())
        total += is_equal.size
    return equal / total


def check_split(store: CodeStore, args: argparse.Namespace, tokenizer: Tokenizer | None, world: World) -> None:
    """Checks one split and logs what is in it. Raises UserError for what is wrong."""
    shape = " x ".join(f"{size:,}" for size in store.codes.shape)
    logger.info("%s: %s, %s views of %s", store.folder, shape, store.manifest.views, store.manifest.data)
    logger.info("%s: %s", store.folder, read_all(store, world).text())
    if tokenizer is None:
        return

    # The images must be those of the codes, before they are encoded.
    store.require(tokenizer.code_maker(), args.vq_ckpt)
    data = images_from(args, tokenizer)
    source = open_source(data, store.manifest.split)
    if len(source) != len(store):
        raise UserError(f"{store.folder} has codes of {len(store):,} images, but {source.name} has {len(source):,}")
    fraction = equal_fraction(store, source, tokenizer, data, min(args.num_images, len(store)), world)
    if fraction < MIN_EQUAL:
        raise CodesError(
            f"{store.folder}: only {fraction:.1%} of the codes are those that {args.vq_ckpt} makes of the images now "
            f"(at least {MIN_EQUAL:.0%} are expected); files have changed, or are read in another order"
        )
    logger.info("%s: %.2f %% of the codes of %d images came out again", store.folder, 100 * fraction, args.num_images)


# ------------------------------------------------------------------------------------------------ the command
def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("--code-path", required=True, type=Path, help="folder of the codes")
    parser.add_argument(
        "--num-images", type=positive, default=64, help="images that are encoded again with --vq-ckpt (default 64)"
    )
    add_tokenizer_flags(parser, default="none, and nothing is encoded again")
    add_image_flags(parser)
    add_device_flag(parser)
    return parser.parse_args()


def open_stores(code_path: Path) -> list[CodeStore]:
    """The splits that are there. Raises CodesError if there is none, or one is unfinished or damaged."""
    present = [split for split in SPLITS if (code_path / split).is_dir()]
    return [CodeStore(code_path, split) for split in present or SPLITS[:1]]


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the codes and the tokenizer."""
    preflight.device(args.device)
    with preflight.collecting():
        for store in open_stores(args.code_path):
            preflight.ready.append(f"--code-path: {len(store):,} images in {store.folder}")
    if args.vq_ckpt is not None:
        tokenizer_needs(args, preflight)


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    with distributed_world(args.device, tf32=False) as world:
        tokenizer = tokenizer_from(args, world.device) if args.vq_ckpt is not None else None
        for store in open_stores(args.code_path):
            check_split(store, args, tokenizer, world)
    logger.info("the codes in %s are sound", args.code_path)


if __name__ == "__main__":
    run_entry(main)
