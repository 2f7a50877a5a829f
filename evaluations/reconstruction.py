"""Measures the reconstruction quality of a tokenizer: rFID, PSNR, SSIM, LPIPS, codebook usage, compression, text.

    python -m evaluations.reconstruction --vq-ckpt runs/quickstart/tokenizer \\
        --output runs/quickstart/evaluations/reconstruction.json
    bash scripts/reconstruction.sh --vq-ckpt runs/VQ_SS256 --val-path $IMGNET_ROOT/ILSVRC2012_img_val \\
        --extractor inception --lpips --output results/VQ_SS256.json
    python -m evaluations.reconstruction --vq-ckpt sdxl-vae/ --image-size 256 --val-path val --output results/sdxl.json
    python -m evaluations.reconstruction --vq-ckpt runs/WeTok --val-path coco/val2017 --protocol wetok \\
        --original-resolution --extractor inception --output results/WeTok_coco.json

Every image is turned into codes and back (encode -> indices -> decode). --protocol adm (GigaTok, LlamaGen) uses ADM's
center crop, uint8 rounding and TensorFlow's resize. --protocol wetok uses a bilinear crop, images truncated to uint8
for PSNR and SSIM, and unrounded images with PyTorch's resize for rFID. The distance is measured to the same held-out
images, unless --reference names others. Without --protocol, images follow the rules of adm and the extractor works
offline; with it, all of the published measurement is asked for (Inception, 256 px), and the result names every fact
that is different. With --original-resolution, convolutional tokenizers take whole images, padded to a multiple of the
tokenizer's factor. With --text-reader, drawn words are reconstructed and read as well (evaluations.text_readback).

--vq-ckpt may also be an autoencoder of diffusers (a folder, or an address of the hub) or, with --trust-jit, a program
in TorchScript: see docs/checkpoints.md. Images then go through its latents, and there are no numbers of codes.
"""

from __future__ import annotations

import argparse

import torch

from engine.cli import entry_parser, positive, run_entry
from engine.preflight import Preflight, require
from engine.world import World
from evaluations.cli import (
    add_measure_flags,
    add_pair_metric_flags,
    add_published_flags,
    output_needs,
    run_evaluation,
    take_data_path_as_held_out,
)
from evaluations.jobs.reconstruction import ReconstructionJob, require_images, require_lpips_size
from evaluations.measured_needs import UNKNOWN, ToMeasure, measure_needs, pair_metric_needs
from evaluations.preset_flags import add_protocol_flag, parse_with_preset
from evaluations.protocols.reconstruction import Reconstructor
from evaluations.protocols.registry import DEFAULT_PROTOCOL, PROTOCOLS
from evaluations.readback.pictures import PER_HEIGHT
from tokenizer.cli import add_image_flags, add_reconstructing_flags, images_to_check, reconstructing_needs


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_reconstructing_flags(parser)
    add_image_flags(parser)

    # What is measured.
    add_protocol_flag(parser, "reconstruction", DEFAULT_PROTOCOL)
    parser.add_argument("--original-resolution", action="store_true", help="take whole images, one at a time, padded")
    add_pair_metric_flags(parser)
    parser.add_argument(
        "--text-pictures", type=positive, default=PER_HEIGHT,
        help=f"pictures of words per height of letters (default {PER_HEIGHT})",
    )  # fmt: skip
    add_measure_flags(parser, reference="val", batch_size=50)
    add_published_flags(parser)

    args = parse_with_preset(parser, "reconstruction", DEFAULT_PROTOCOL)
    if args.reference != "train":
        take_data_path_as_held_out(args)
    return args


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    ReconstructionJob.from_args(args, world).run(world)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the tokenizer, the images, the reference and the networks that measure."""
    output_needs(args, "reconstruction", preflight)
    tokenizer = reconstructing_needs(args, preflight)
    data = None
    count: int | str = UNKNOWN
    with preflight.collecting():
        data = images_to_check(args, tokenizer)
        survey = preflight.images(data, "val") if data is not None else None
        if survey is not None and survey.num_images is not None:
            count = survey.num_images
            require_images(survey.name, count)

    # At which size they are measured, and what follows from that.
    size = None
    if tokenizer is not None:
        with preflight.collecting():
            protocol = PROTOCOLS[args.protocol]()
            reconstructor = Reconstructor(tokenizer, protocol, args.image_size_eval, args.original_resolution)
            size = None if reconstructor.whole else reconstructor.eval_size
            require_lpips_size(args.with_lpips, size)
    measure_needs(args, ToMeasure("reconstruction", count, size), data, preflight)
    pair_metric_needs(args, preflight)


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    run_evaluation(args, evaluate)


if __name__ == "__main__":
    run_entry(main)
