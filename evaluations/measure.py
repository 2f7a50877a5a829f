"""Measures images of any code base: a set of samples, or originals and their reconstructions in pairs.

    python -m evaluations.measure --samples samples.npz --gt-npz-path VIRTUAL_imagenet256_labeled.npz --output gfid.json
    python -m evaluations.measure --samples pictures/ --gt-npz-path val_imagenet256.npz --measured reconstruction \\
        --output rfid.json
    python -m evaluations.measure --samples samples.npz --gt-npz-path VIRTUAL_imagenet256_labeled.npz --protocol adm \\
        --output adm.json
    python -m evaluations.measure --originals val256/ --reconstructions theirs/ --lpips --extractor inception \\
        --output theirs.json

A set of samples gets the ADM metrics, as TensorFlow's evaluator computes them, but without TensorFlow. The images are
taken as they are, in the order of the file (or of the file names). The order matters for the Inception Score, which is
computed over consecutive chunks of 5,000 images: where the file has labels (`arr_1` or `labels`), or a folder has one
folder per class, images that are sorted by class give a warning.

Pairs get PSNR, SSIM, LPIPS (--lpips) and the distance between both sets (rFID with --extractor inception), and with
--text-reader the words that can still be read. They are two folders with the same names (suffixes may differ), two npz
files with images in the same order, or twice one folder in which the original of tom.png is tom_gt.png, as
tokenizer.reconstruct writes them. --protocol adm, wetok, ibq or var chooses the rules of scores and features; crop and
rounding were those of the other program. What has no partner, or one of another size, is an error that names it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from engine.cli import entry_parser, run_entry
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from engine.world import World
from evaluations.cli import (
    SPLITS,
    add_measure_flags,
    add_pair_metric_flags,
    extractor_from,
    extractor_name,
    held_out_features,
    numbers_from,
    open_named_reference,
    output_needs,
    output_path,
    reference_path,
    run_evaluation,
)
from evaluations.image_pairs import ORIGINALS, RECONSTRUCTIONS, open_pairs
from evaluations.image_sets import AS_STORED, FolderImages, NpzImages, open_images
from evaluations.jobs.pairs import PairsJob
from evaluations.jobs.reconstruction import require_images
from evaluations.measured_needs import UNKNOWN, ToMeasure, images_needs, measure_needs, pair_metric_needs
from evaluations.metrics.class_order import order_problem
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.inception_score import SCORE_CHUNK
from evaluations.preset_flags import OF_FILES, add_protocol_flag, parse_with_preset, preset_section
from evaluations.protocols.distances import compute_metrics
from evaluations.protocols.presets import presets_for
from evaluations.protocols.reference import features_of
from evaluations.protocols.registry import DEFAULT_PROTOCOL, PROTOCOLS
from evaluations.protocols.trust import KINDS, require_trust
from evaluations.readback.pictures import ReconstructedFiles, StoredPictures
from evaluations.results import claim_result, write_result
from tokenizer.cli import add_skip_flag

NO_EXTRACTOR = "--extractor none leaves nothing to measure"
NO_REFERENCE = "--gt-npz-path (or --reference) names the npz file or folder to measure against"
OF_PAIRS = ("precision_recall", "with_lpips", "metrics", "text_reader", "text_originals", "text_reconstructions")


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # What is measured: a set of samples, or pairs.
    parser.add_argument("--samples", help="npz file with arr_0, or a folder of images")
    parser.add_argument(
        "--measured", choices=sorted(KINDS), help="what the samples are (default: as --protocol says, else generation)"
    )
    parser.add_argument(ORIGINALS, type=Path, metavar="PATH", help="of pairs: a folder of images, or an npz file")
    parser.add_argument(RECONSTRUCTIONS, type=Path, metavar="PATH", help="what became of the originals, likewise")

    # How.
    add_protocol_flag(parser, None)
    add_skip_flag(parser)
    add_pair_metric_flags(parser)
    parser.add_argument(
        "--text-originals", type=Path, metavar="FOLDER",
        help="with --text-reader: a folder that evaluations.text_readback --draw has filled",
    )  # fmt: skip
    parser.add_argument(
        "--text-reconstructions", type=Path, metavar="FOLDER", help="what became of its pictures, under the same names"
    )
    add_measure_flags(parser, reference=None, batch_size=50)
    return with_preset(parser)


def with_preset(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags, with those of --protocol for what is measured. Raises UserError for flags that exclude each other."""
    args = parser.parse_args()
    if args.originals is None and args.reconstructions is None:
        if args.samples is None:
            raise UserError(f"give --samples PATH, or {ORIGINALS} PATH {RECONSTRUCTIONS} PATH")
        pair_flags = [name for name in OF_PAIRS if getattr(args, name)]
        if pair_flags:
            flags = ", ".join(f"--{name.removeprefix('with_').replace('_', '-')}" for name in pair_flags)
            raise UserError(f"{flags}: of pairs only ({ORIGINALS} PATH {RECONSTRUCTIONS} PATH)")
        args = parse_with_preset(parser, None)
        args.measured = args.measured or "generation"
        return args

    check_pair_flags(args)
    args = parse_with_preset(parser, "reconstruction", DEFAULT_PROTOCOL)
    args.measured = "reconstruction"
    args.reference = args.reference or "val"  # the originals themselves
    return args


def check_pair_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags of pairs that exclude each other, or have no meaning for pairs."""
    if args.samples is not None or args.originals is None or args.reconstructions is None:
        raise UserError(f"give --samples PATH, or both {ORIGINALS} PATH and {RECONSTRUCTIONS} PATH")
    if args.measured == "generation":
        raise UserError("--measured generation: pairs are a reconstruction; leave it out")
    if args.reference in SPLITS:
        raise UserError(f"--reference {args.reference}: of pairs, name a file or folder, or leave it out")
    if args.skip_broken:
        raise UserError("--skip-broken: a pair with a broken image has no replacement; remove both images of it")
    fitting = {*presets_for("reconstruction"), *PROTOCOLS}
    if args.protocol is not None and args.protocol not in fitting:
        names = ", ".join(sorted(fitting))
        raise UserError(f"--protocol {args.protocol} measures no reconstructions; these do: {names}")
    text_flags = [args.text_reader is not None, args.text_originals is not None, args.text_reconstructions is not None]
    if any(text_flags) and not all(text_flags):
        raise UserError("--text-reader, --text-originals and --text-reconstructions belong together: give all or none")


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    if args.originals is not None:
        PairsJob.from_args(args, world).run(world)
        return

    # Everything that may not fit, before anything is computed.
    output = output_path(args, "result")
    path = reference_path(args) if args.reference else None
    if path is None:
        raise UserError(NO_REFERENCE)
    images = open_images(args.samples, "--samples", args.skip_broken)
    extractor = extractor_from(args, world)
    if extractor is None:
        raise UserError(NO_EXTRACTOR)
    opened = open_named_reference(path, args.reference_kind, extractor, args.skip_broken)
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


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the images, the reference (a file or a folder), and the weights of the networks that measure."""
    output_needs(args, "result", preflight)
    if args.originals is not None:
        pair_needs(args, preflight)
        return

    # What is measured, and what it is measured against.
    if extractor_name(args) == "none":
        preflight.problem(NO_EXTRACTOR)
    images = images_needs(args.samples, "--samples", args.skip_broken, preflight)
    images = replace(images, kind=args.measured) if images is not None else ToMeasure(args.measured, UNKNOWN)
    if args.reference and args.reference not in SPLITS:
        measure_needs(args, images, None, preflight)
    else:
        preflight.problem(NO_REFERENCE)


def pair_needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the pairs by their names, and for what measures them; of the images, the first header is read."""
    images = ToMeasure("reconstruction", UNKNOWN)
    with preflight.collecting():
        pairs = open_pairs(args.originals, args.reconstructions)
        require_images(str(args.originals), len(pairs))
        images = ToMeasure("reconstruction", len(pairs), pairs.first_size(), is_one_size=pairs.is_one_size)
        where = f"{args.originals} and {args.reconstructions}"
        preflight.ready.append(f"{ORIGINALS}, {RECONSTRUCTIONS}: {len(pairs):,} pairs {pairs.paired} in {where}")
    measure_needs(args, images, None, preflight)
    pair_metric_needs(args, preflight)
    if args.text_reader is not None:
        with preflight.collecting():
            pictures = StoredPictures(args.text_originals, "--text-originals")
            ReconstructedFiles(pictures, args.text_reconstructions, "--text-reconstructions")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    run_evaluation(args, evaluate)


if __name__ == "__main__":
    run_entry(main)
