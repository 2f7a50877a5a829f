"""Measures the validation loss of a GPT: mean cross entropy of held-out codes, in nats per token, given the true class.

    bash scripts/val_loss_c2i.sh --vq-ckpt runs/VQ_SS256 --gpt-ckpt runs/GPT_B256 --val-path $VAL_PATH \\
        --output results/val_loss.json
    python -m evaluations.val_loss --vq-ckpt runs/quickstart/tokenizer --gpt-ckpt runs/quickstart/gpt \\
        --output runs/quickstart/evaluations/val_loss.json

The tokenizer encodes center crops, unless --code-path names extracted codes with a split `val`. There is no dropout,
and no labels are dropped. Every image counts once, for any batch size and number of processes; the released script
averages the means of batches instead. `val_loss_stderr` is the standard error of the mean over images.

A masked generator has no likelihood by the chain rule, but an upper bound, `val_loss_bound`, from four masks per image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from autoregressive.cli import add_gpt_flags, gpt_needs
from autoregressive.loading import classes_of
from engine.cli import entry_parser, run_entry
from engine.preflight import Preflight, require
from engine.world import World
from evaluations.cli import add_output_flags, codes_needs, output_needs, run_evaluation, take_data_path_as_held_out
from evaluations.jobs.val_loss import ValLossJob
from tokenizer.cli import add_image_flags, add_tokenizer_flags, images_to_check, tokenizer_needs


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    add_tokenizer_flags(parser)
    add_gpt_flags(parser)
    parser.add_argument(
        "--code-path", type=Path, help="codes of the tokenizer, with a split `val`, to use instead of images"
    )
    add_image_flags(parser)
    add_output_flags(parser, batch_size=32)
    args = parser.parse_args()
    take_data_path_as_held_out(args)
    return args


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    ValLossJob.from_args(args, world).run(world)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for both networks and the held-out codes or images, of classes that the generator knows."""
    output_needs(args, "val_loss", preflight)
    tokenizer = tokenizer_needs(args, preflight)
    generator = gpt_needs(args, tokenizer, preflight)
    classes = classes_of(generator) if generator is not None else None
    if args.code_path is not None:
        codes_needs(args, "val", classes, preflight)
        return
    with preflight.collecting():
        data = images_to_check(args, tokenizer)
        survey = preflight.images(data, "val") if data is not None else None
        preflight.classes(survey, classes)


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    run_evaluation(args, evaluate)


if __name__ == "__main__":
    run_entry(main)
