"""The ADM metrics of any set of images, from an npz file or a folder: TensorFlow's evaluator without TensorFlow.

    python -m evaluations.measure --samples samples.npz --gt-npz-path VIRTUAL_imagenet256_labeled.npz --output gfid.json
    python -m evaluations.measure --samples pictures/ --gt-npz-path val_imagenet256.npz --measured reconstruction \\
        --output rfid.json

Images are taken as they are, in the order of the file (or of the file names): the Inception Score is that of
consecutive chunks of 5,000. They may come from any code base.
"""

from __future__ import annotations

import argparse

import torch

from engine.cli import entry_parser, run_entry
from engine.messages import UserError
from engine.world import World
from evaluations.cli import add_measure_flags, extractor_of, output_of, reference_path, run_evaluation
from evaluations.image_sets import open_images
from evaluations.protocols.reference import (
    KINDS,
    compute_metrics,
    features_of,
    reference_of_file,
    reference_of_images,
    require_kind,
    require_size,
)
from evaluations.results import write_result


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("--samples", required=True, help="npz file with arr_0, or a folder of images")
    parser.add_argument("--measured", default="generation", choices=sorted(KINDS), help="what they are")
    add_measure_flags(parser, reference=None, batch_size=50)
    parser.set_defaults(extractor="inception")
    return parser.parse_args()


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    output = output_of(args, "result")
    path = reference_path(args) if args.reference else None
    if path is None:
        raise UserError("--gt-npz-path (or --reference) names the npz file or folder to measure against")
    images, extractor = open_images(args.samples), extractor_of(args, world)
    if extractor is None:
        raise UserError("--extractor none leaves nothing to measure")
    keep = extractor.metric == "fid"
    if path.suffix == ".npz":
        reference = reference_of_file(path, args.reference_kind, extractor, output.parent, world, keep)
    elif args.reference_kind is None:
        raise UserError(f"say whose images {path} holds: --reference-kind train or val")
    else:
        reference = reference_of_images(
            open_images(path, "--reference"), args.reference_kind, extractor, output.parent, world, keep
        )
    require_kind(reference, args.measured, args.force_reference)
    require_size(reference, images.image_size)
    made = features_of(images, extractor, world, keep, "features", args.per_proc_batch_size)
    metrics, missing = compute_metrics(made, reference, world, args.measured, args.fp16_emulation)
    facts = {"num_images": len(images), "image_size": images.image_size, "rounding": "uint8 as stored"}
    protocol = {"kind": args.measured, **facts, "reference": reference.facts, "samples": images.facts}
    if world.is_main:
        write_result(output, metrics, protocol, unavailable=missing)


def main() -> None:
    run_evaluation(parse_args(), evaluate)


if __name__ == "__main__":
    run_entry(main)
