"""Writes a reference file for a folder of images: center crops, their statistics, and their kind.

    bash scripts/val.sh --data-path $IMGNET_ROOT/ILSVRC2012_img_val --image-size 256 --output val_imagenet256.npz
    python -m evaluations.make_reference --data-path train/ --kind train --num-images 10000 --output train_256.npz
    python -m evaluations.make_reference --data-path train/ --kind train --extractor dinov2_l --output train_dinov2.npz

The file has ADM's layout (mu, sigma, mu_s, sigma_s, arr_0) and records the kind of its images (train or val), so that
no reconstruction is measured against training images by mistake. `arr_0` holds --num-images crops, spread evenly over
the set, for precision and recall.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.assets import assets_of
from engine.cli import add_device_flag, entry_parser, positive, run_entry
from engine.data.config import DataConfig
from engine.data.samples import evenly_spread
from engine.data.sources import kind_of, open_path, survey_source
from engine.messages import UserError, logger
from engine.outputs import require_absent, require_suffix
from engine.preflight import Preflight, require
from engine.world import World
from evaluations.cli import SPLITS, add_asset_flags, assets_from, run_evaluation
from evaluations.image_sets import NpzWriter, SourceImages
from evaluations.metrics.extractors import EXTRACTORS, FILE_EXTRACTOR
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.protocols.trust import add_force_flag, count_doubts, untrusted_message
from evaluations.results import write_arrays
from tokenizer.cli import add_skip_flag


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # The images.
    parser.add_argument(
        "--data-path", required=True, help="folder with one subfolder per class, folder of images, or tar files"
    )
    add_skip_flag(parser)
    parser.add_argument("--kind", default="val", choices=SPLITS, help="kind of the images (default val)")

    # What is stored of them.
    parser.add_argument(
        "--extractor", default=FILE_EXTRACTOR, choices=sorted(EXTRACTORS),
        help=f"whose features the statistics are of (default {FILE_EXTRACTOR})",
    )  # fmt: skip
    parser.add_argument("--image-size", type=positive, default=256)
    parser.add_argument("--num-images", type=positive, default=10000, help="number of crops to store (default 10000)")
    parser.add_argument(
        "--no-images", action="store_true", help="store only the statistics, which rules out precision and recall"
    )

    # How it is computed, and where it goes.
    parser.add_argument("--per-proc-batch-size", type=positive, default=50)
    parser.add_argument("--output", required=True, type=Path, help="npz file to write; nothing is overwritten")
    add_force_flag(parser, "make a reference of too few images; numbers that it is used for must be forced as well")
    add_device_flag(parser)
    add_asset_flags(parser)
    return parser.parse_args()


class EvenlySpread:
    """Writes evenly spread images of a set into an npz file, every rank those of its batches.

    `num_stored` of `count` images are written, all of a smaller set.
    """

    def __init__(self, path: Path, count: int, num_stored: int, image_size: int, world: World) -> None:
        stored = evenly_spread(count, num_stored)
        self.num_stored = len(stored)
        self.rows = torch.full((count,), -1)  # image number -> its row in the file, -1 for images that are left out
        self.rows[torch.from_numpy(stored)] = torch.arange(len(stored))
        self.writer = NpzWriter(path, len(stored), image_size, world)

    def write(self, ids: torch.Tensor, images_u8: torch.Tensor) -> None:
        is_stored = self.rows[ids] >= 0
        self.writer.write(self.rows[ids][is_stored], images_u8[is_stored])


def reference_arrays(images: SourceImages, kind: str, statistics: FeatureStatistics, world: World) -> dict[str, Any]:
    """Facts and statistics by the names of the file. A collective: every rank calls it."""
    # Statistics of both kinds of features; not every extractor has spatial ones.
    mean, cov = statistics.pool.merged(world).gaussian()
    spatial = {}
    if statistics.spatial is not None:
        spatial["mu_s"], spatial["sigma_s"] = statistics.spatial.merged(world).gaussian()

    return {
        **{key: np.array(str(value)) for key, value in images.facts.items()},
        "kind": np.array(kind),
        "extractor": np.array(statistics.extractor.metric),
        "extractor_weights": np.array(statistics.extractor.stamp),
        **{name: np.array(fact) for name, fact in statistics.extractor.facts.items()},
        "image_size": np.array(images.image_size),
        "mu": mean,
        "sigma": cov,
        **spatial,
        "num_images": np.array(len(images)),
    }


@torch.inference_mode()
def write(args: argparse.Namespace, world: World) -> None:
    require_suffix(args.output, ".npz", "--output")
    require_absent(args.output, "--output")
    source = open_path(args.data_path, "--data-path", args.skip_broken)
    images = SourceImages(source, args.kind, args.image_size, args.skip_broken)
    extractor = EXTRACTORS[args.extractor](assets_from(args)).to(world.device)
    doubts = list(count_doubts("reference", len(images), extractor))
    if doubts and not args.force:
        raise UserError(untrusted_message(doubts))

    # One pass over the images for both.
    statistics = FeatureStatistics(extractor, len(images))
    crops = None
    if not args.no_images:
        crops = EvenlySpread(args.output, len(images), args.num_images, args.image_size, world)
    for ids, pixels in images.batches(args.per_proc_batch_size, world):
        statistics.update(ids, extractor(pixels.to(world.device)))
        if crops is not None:
            crops.write(ids, pixels)

    arrays = reference_arrays(images, args.kind, statistics, world)
    if crops is not None:
        crops.writer.finish(**arrays)
    elif world.is_main:
        write_arrays(args.output, **arrays)
    if world.is_main:
        num_stored = crops.num_stored if crops is not None else 0
        logger.info("%s: statistics of %d images, %d of them stored", args.output, len(images), num_stored)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the images, the extractor's weights, and room for the stored crops."""
    preflight.device(args.device)
    preflight.assets(assets_of(EXTRACTORS[args.extractor]), assets_from(args))
    num_crops = 0
    with preflight.collecting():
        data = DataConfig(name=kind_of(args.data_path), root=args.data_path, skip_broken=args.skip_broken)
        survey = survey_source(data, "train")
        preflight.ready.append(f"--data-path: {survey.text()}")
        num_crops = min(args.num_images, survey.num_images or args.num_images)
    preflight.new_file(args.output, "--output")
    with preflight.collecting():
        require_suffix(args.output, ".npz", "--output")
    preflight.output(args.output.parent, "--output", 0 if args.no_images else num_crops * args.image_size**2 * 3)


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    run_evaluation(args, write)


if __name__ == "__main__":
    run_entry(main)
