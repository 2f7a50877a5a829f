"""Writes the reference file of a folder of images: centre crops, their Inception statistics, and which kind they are.

    bash scripts/val.sh --data-path $IMGNET_ROOT/ILSVRC2012_img_val --image-size 256 --output val_imagenet256.npz
    python -m evaluations.make_reference --data-path train/ --kind train --num-images 10000 --output train_256.npz

The file has ADM's layout (mu, sigma, mu_s, sigma_s, arr_0) and says its kind, so that no reconstruction is measured
against training images by mistake. `arr_0` holds --num-images evenly spread crops, for precision and recall.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from engine.cli import entry_parser, positive, run_entry
from engine.data.sources import open_path
from engine.messages import UserError, logger
from engine.world import World
from evaluations.cli import add_asset_flags, assets_of, run_evaluation
from evaluations.image_sets import NpzWriter, SourceImages
from evaluations.metrics.extractors import InceptionExtractor
from evaluations.metrics.feature_statistics import FeatureStatistics
from evaluations.results import write_arrays


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument(
        "--data-path", required=True, help="folder with one sub-folder per class, or of images, or tar files"
    )
    parser.add_argument("--kind", default="val", choices=["val", "train"], help="whose images they are (default val)")
    parser.add_argument("--image-size", type=positive, default=256)
    parser.add_argument("--num-images", type=positive, default=10000, help="crops to store (default 10000)")
    parser.add_argument("--no-images", action="store_true", help="store statistics only: no precision and recall later")
    parser.add_argument("--per-proc-batch-size", type=positive, default=50)
    parser.add_argument("--output", required=True, type=Path, help="npz file; nothing is overwritten")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add_asset_flags(parser)
    return parser.parse_args()


@torch.inference_mode()
def write(args: argparse.Namespace, world: World) -> None:
    if args.output.suffix != ".npz" or args.output.exists():
        raise UserError(f"--output {args.output} must be an npz file that does not exist yet")
    source = open_path(args.data_path, "--data-path")
    images = SourceImages(source, args.kind, args.image_size)
    extractor = InceptionExtractor(assets_of(args)).to(world.device)
    stored = np.unique(np.linspace(0, len(images) - 1, min(args.num_images, len(images))).round().astype(int))
    place = torch.full((len(images),), -1).index_put_((torch.from_numpy(stored),), torch.arange(len(stored)))
    found = FeatureStatistics(extractor, len(images))
    writer = NpzWriter(args.output, len(stored), args.image_size, world) if not args.no_images else None
    for ids, pixels in images.batches(args.per_proc_batch_size, world):
        found.update(ids, extractor(pixels.to(world.device)))
        if writer is not None:
            kept = place[ids] >= 0
            writer.write(place[ids][kept], pixels[kept])
    (mean, cov), (mean_s, cov_s) = (part.merged(world).gaussian() for part in (found.pool, found.spatial))
    facts = {key: np.array(str(value)) for key, value in images.facts.items()}
    facts |= {"kind": np.array(args.kind), "extractor_weights": np.array(extractor.stamp)}
    facts |= {"mu": mean, "sigma": cov, "mu_s": mean_s, "sigma_s": cov_s, "num_images": np.array(len(images))}
    if writer is not None:
        writer.finish(**facts)
    elif world.is_main:
        write_arrays(args.output, **facts)
    if world.is_main:
        logger.info(
            "%s: statistics of %d images, %d of them stored", args.output, len(images), len(stored) if writer else 0
        )


def main() -> None:
    run_evaluation(parse_args(), write)


if __name__ == "__main__":
    run_entry(main)
