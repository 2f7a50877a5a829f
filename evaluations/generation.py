"""Measures generated images: gFID, sFID, Inception Score, precision, recall, variety, and class agreement.

    bash scripts/sample_c2i_search_cfg.sh --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 --cfg-scale 2.0 \\
        --gt-npz-path VIRTUAL_imagenet256_labeled.npz --output results/GPT_B256.json
    python -m evaluations.generation --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt \\
        --code-path runs/quickstart/codes --num-fid-samples 1000 --cfg-scale 2.0 \\
        --output runs/quickstart/evaluations/generation.json

Images are measured as they are generated; --export also writes them to files. The random numbers of a sample depend
only on the seed, the sample number and the position, so with the same batch size, any number of processes generates the
same images. `distinct` is the fraction of code sequences that are different from each other, and `memorized` is the
fraction that also occurs among the training codes (--code-path). With --classifier, `label_agreement` is the fraction
of images that the classifier puts into the requested class. `decoding_share` is the fraction of the generation time
that the tokenizer's decoder takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from engine.cli import entry_parser, run_entry
from engine.preflight import Preflight, require
from engine.world import World
from evaluations.cli import add_metric_flags, codes_needs, run_evaluation
from evaluations.digits.model import find_classifier
from evaluations.jobs.generation import GenerationJob, require_flags
from evaluations.measured_needs import metric_needs
from evaluations.preset_flags import parse_with_preset
from evaluations.protocols.generation_accumulators import EXPORTS
from evaluations.sample_stream import add_sampled_flags, sampled_needs


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_sampled_flags(parser)
    add_metric_flags(parser)
    parser.add_argument("--code-path", type=Path, help="training codes, to count memorized sequences")
    parser.add_argument("--classifier", type=Path, help="folder of a classifier trained with evaluations.classifier")
    parser.add_argument("--export", choices=sorted(EXPORTS), help="also write the images to --sample-dir")
    return parse_with_preset(parser, "generation")


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    GenerationJob.from_args(args, world).run(world)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the networks, the reference, the training codes and the classifier."""
    classes = sampled_needs(args, "generation", preflight)
    with preflight.collecting():
        require_flags(args)
    metric_needs(args, "images", preflight)
    if args.code_path is not None:
        codes_needs(args, "train", classes, preflight)
    if args.classifier is not None:
        with preflight.collecting():
            find_classifier(args.classifier, classes, hashed=preflight.hashes)
    if args.export and args.sample_dir is not None:
        preflight.output(args.sample_dir, "--sample-dir")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    run_evaluation(args, evaluate)


if __name__ == "__main__":
    run_entry(main)
