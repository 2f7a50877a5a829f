"""Computes the ADM metrics of any set of images, as TensorFlow's evaluator does, but without TensorFlow.

    python -m evaluations.measure --samples samples.npz --gt-npz-path VIRTUAL_imagenet256_labeled.npz --output gfid.json
    python -m evaluations.measure --samples pictures/ --gt-npz-path val_imagenet256.npz --measured reconstruction \\
        --output rfid.json
    python -m evaluations.measure --samples samples.npz --gt-npz-path VIRTUAL_imagenet256_labeled.npz --protocol adm \\
        --output adm.json

The images may come from any code base. They are taken as they are, in the order of the file (or of the file names). The
order matters for the Inception Score, which is computed over consecutive chunks of 5,000 images: where the file has
labels (`arr_1` or `labels`), or a folder has one folder per class, images that are sorted by class give a warning.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from engine.assets import assets_of
from engine.cli import entry_parser, run_entry
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from engine.world import World
from evaluations.cli import (
    add_measure_flags,
    assets_from,
    extractor_from,
    extractor_name,
    held_out_features,
    measure_needs,
    numbers_from,
    output_needs,
    output_path,
    reference_path,
    run_evaluation,
)
from evaluations.image_sets import AS_STORED, FolderImages, NpzImages, open_images, survey_images
from evaluations.metrics.class_order import order_problem
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import EXTRACTORS, FILE_EXTRACTOR
from evaluations.metrics.inception_score import SCORE_CHUNK
from evaluations.preset_flags import OF_FILES, add_protocol_flag, parse_with_preset, preset_section
from evaluations.protocols.distances import compute_metrics
from evaluations.protocols.reference import ReferenceImages, ReferenceSource, features_of
from evaluations.protocols.reference_file import ReferenceFile
from evaluations.protocols.trust import KINDS, require_trust
from evaluations.results import claim_result, write_result
from tokenizer.cli import add_skip_flag


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("--samples", required=True, help="npz file with arr_0, or a folder of images")
    parser.add_argument(
        "--measured", choices=sorted(KINDS), help="what the images are (default: as --protocol says, else generation)"
    )
    add_protocol_flag(parser, None)
    add_skip_flag(parser)
    add_measure_flags(parser, reference=None, batch_size=50)
    parser.set_defaults(extractor=FILE_EXTRACTOR)
    args = parse_with_preset(parser, None)
    args.measured = args.measured or "generation"
    return args


def open_reference(path: Path, kind: str | None, extractor: Extractor, skip_broken: bool) -> ReferenceSource:
    """The reference in an npz file, or the images of a folder as one.

    Raises UserError where its kind is not known.
    """
    if path.suffix == ".npz":
        return ReferenceFile.read(path, kind, extractor)
    if kind is None:
        raise UserError(f"say whose images {path} holds: --reference-kind train or val")
    return ReferenceImages(open_images(path, "--reference", skip_broken), kind, extractor)


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    # Everything that may not fit, before anything is computed.
    output = output_path(args, "result")
    path = reference_path(args) if args.reference else None
    if path is None:
        raise UserError("--gt-npz-path (or --reference) names the npz file or folder to measure against")
    images = open_images(args.samples, "--samples", args.skip_broken)
    extractor = extractor_from(args, world)
    if extractor is None:
        raise UserError("--extractor none leaves nothing to measure")
    opened = open_reference(path, args.reference_kind, extractor, args.skip_broken)
    require_trust(opened.facts, args, args.measured, len(images), images.image_size, extractor)

    # How the numbers are made, and whether they may be written.
    protocol = {
        "kind": args.measured,
        "num_images": len(images),
        "image_size_eval": images.image_size,
        "file_format": images.file_format(),
        "crop": AS_STORED,
        "resize": AS_STORED,
        "rounding": "uint8 as stored",
        "reference": opened.facts,
        "samples": images.facts,
    }
    protocol |= sample_order(images, extractor)
    protocol |= preset_section(args.preset, protocol, extractor, not_known=OF_FILES)
    claim_result(output, protocol)

    # The numbers.
    numbers = numbers_from(args)
    with_manifold = "published" in extractor.capabilities
    keep_features = with_manifold or bool(numbers)
    held_out = held_out_features(args, images.image_size, extractor, world)
    reference = opened.reference(output.parent, world, keep_features)
    statistics = features_of(images, extractor, world, keep_features, "features", args.per_proc_batch_size)
    measurement = compute_metrics(
        statistics,
        reference,
        world,
        args.measured,
        numbers=numbers,
        with_manifold=with_manifold,
        emulate_fp16=args.fp16_emulation,
        held_out=held_out,
    )

    if world.is_main:
        write_result(output, measurement.metrics, protocol, ids=images.ids(), **measurement.sections())


def sample_order(images: NpzImages | FolderImages, extractor: Extractor) -> dict[str, str]:
    """`{sample_order: ...}` for the protocol, where the images are known to be sorted by class, and it matters."""
    labels = images.labels() if extractor.num_classes is not None else None
    problem = order_problem(labels, SCORE_CHUNK, "label") if labels is not None else None
    if problem is None:
        return {}
    logger.warning("--samples: the images are %s; shuffle them", problem)
    return {"sample_order": problem}


def images_needs(path: str, flag: str, args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the images of an npz file or a folder."""
    with preflight.collecting():
        count = survey_images(path, flag, args.skip_broken)
        preflight.ready.append(f"{flag}: {count:,} images in {path}")


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the images, the reference (a file or a folder), and the weights of the extractor."""
    # What is measured, and where the result goes.
    output_needs(args, "result", preflight)
    extractor = extractor_name(args)
    if extractor == "none":
        preflight.problem("--extractor none leaves nothing to measure")
    images_needs(args.samples, "--samples", args, preflight)

    # What it is measured against. Of a folder, the weights are looked for here, as for a file below.
    if not args.reference:
        preflight.problem("--gt-npz-path (or --reference) names the npz file or folder to measure against")
    elif Path(args.reference).is_dir():
        images_needs(args.reference, "--reference", args, preflight)
        if extractor != "none":
            preflight.assets(assets_of(EXTRACTORS[extractor]), assets_from(args))
    else:
        measure_needs(args, None, preflight)


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    run_evaluation(args, evaluate)


if __name__ == "__main__":
    run_entry(main)
