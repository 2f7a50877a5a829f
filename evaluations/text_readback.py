"""Measures how much drawn text can still be read after a tokenizer (text_readback), without any download.

    python -m evaluations.text_reader --config configs/eval/text_reader.yaml
    python -m evaluations.text_readback --vq-ckpt runs/VQ_SS256 --text-reader runs/text_reader --output text.json

    python -m evaluations.text_readback --draw words256 --image-size 256
    python -m evaluations.text_readback --originals words256 --reconstructions words256_theirs \\
        --text-reader runs/text_reader --output theirs.json

The first command trains the reader. The second draws pictures of random words, turns them into codes and back, and
has the reader read them. `read_exact` is the fraction of words that are read exactly, of those that are read on the
originals; `read_exact_8` is that of letters of 8 pixels. `read_ned` is 1 - edit distance / length. Blurred originals
and JPEG files of them give the scale. A tokenizer of another code base takes the pictures of --draw, writes its
reconstructions into another folder under the same names, and is measured by the last command.

The numbers are those of this reader on these pictures: not T-ACC or T-NED of TokBench, and ranked only between results
of the same reader.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from engine.cli import entry_parser, not_negative, positive, run_entry
from engine.data.text_pictures import font_facts, heights_of
from engine.messages import UserError
from engine.preflight import Preflight, require
from engine.world import World
from evaluations.cli import add_output_flags, output_needs, output_path, run_evaluation
from evaluations.image_sets import ROUNDING
from evaluations.protocols.registry import DEFAULT_PROTOCOL, PROTOCOLS
from evaluations.readback.measurement import Reconstruct, TextReadback, through_network
from evaluations.readback.model import load_reader, reader_needs
from evaluations.readback.pictures import (
    PER_HEIGHT,
    DrawnPictures,
    ReconstructedFiles,
    StoredPictures,
    write_pictures,
)
from evaluations.results import claim_result, write_arrays, write_result
from tokenizer.cli import add_reconstructing_flags, decoded_facts, reconstructing_from, reconstructing_needs

DRAWN_SIZE = 256  # pixels, of --draw


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # What is read: the reconstructions of a tokenizer, or files.
    add_reconstructing_flags(parser, default="none")
    parser.add_argument("--text-reader", type=Path, help="folder of a reader trained with evaluations.text_reader")
    parser.add_argument(
        "--draw", type=Path, metavar="FOLDER", help="write the pictures and their words, and measure nothing"
    )
    parser.add_argument("--originals", type=Path, metavar="FOLDER", help="a folder that --draw has filled")
    parser.add_argument(
        "--reconstructions", type=Path, metavar="FOLDER", help="what became of its pictures, under the same names"
    )

    # Which pictures.
    parser.add_argument(
        "--num-pictures", type=positive, default=PER_HEIGHT,
        help=f"pictures per height of letters (default {PER_HEIGHT})",
    )  # fmt: skip
    parser.add_argument("--seed", type=not_negative, default=0, help="of the pictures (default 0)")
    add_output_flags(parser, batch_size=25)
    args = parser.parse_args()
    check_flags(args)
    return args


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError unless the flags are those of one of the three ways to call this."""
    ways = [args.vq_ckpt is not None, args.draw is not None, args.originals is not None]
    if sum(ways) != 1 or (args.originals is None) != (args.reconstructions is None):
        raise UserError("give one of: --vq-ckpt TOKENIZER; --draw FOLDER; --originals FOLDER --reconstructions FOLDER")
    if args.vq_ckpt is None and args.decoded_tokens is not None:
        raise UserError(f"--num-tokens {args.decoded_tokens}: files have no tokens; it is for --vq-ckpt TOKENIZER")
    if args.draw is None and args.text_reader is None:
        raise UserError("--text-reader FOLDER is missing; python -m evaluations.text_reader trains one")


def drawn_pictures(args: argparse.Namespace, side: int) -> DrawnPictures:
    """The pictures that the flags ask for."""
    return DrawnPictures(side, args.num_pictures, args.seed)


@torch.inference_mode()
def evaluate(args: argparse.Namespace, world: World) -> None:
    if args.draw is not None:
        write_pictures(drawn_pictures(args, args.image_size or DRAWN_SIZE), args.draw, "--draw", world)
        return

    # Whose reconstructions.
    output = output_path(args, "text_readback")
    reader, reader_facts = load_reader(args.text_reader, world.device)
    reconstruct: Reconstruct
    if args.vq_ckpt is not None:
        tokenizer = reconstructing_from(args, world.device)
        pictures = drawn_pictures(args, tokenizer.image_size)
        rules = PROTOCOLS[DEFAULT_PROTOCOL]()
        reconstruct = through_network(tokenizer, rules.to_uint8, world.device)
        made_by: dict[str, Any] = {
            "tokenizer": tokenizer.provenance.facts(),
            "rounding": rules.rounding,
            **decoded_facts(tokenizer),
        }
    else:
        pictures = StoredPictures(args.originals, "--originals")
        reconstruct = ReconstructedFiles(pictures, args.reconstructions, "--reconstructions")
        made_by = {"samples": {"data": str(args.reconstructions)}, "rounding": ROUNDING}

    # The numbers.
    readback = TextReadback(pictures, reader, reader_facts)
    protocol = {"kind": "text_readback", "text_readback": readback.facts(), "precision": "fp32", **made_by}
    claim_result(output, protocol)
    measurement = readback.measure(reconstruct, args.per_proc_batch_size, world)
    if world.is_main:
        ids = f"pictures 0 to {len(pictures.heights) - 1}"
        write_result(output, measurement.metrics, protocol, ids=ids, **measurement.sections())
        write_arrays(output, **measurement.arrays)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the font, the reader, and the tokenizer or the folders."""
    side = args.image_size or DRAWN_SIZE
    with preflight.collecting():
        preflight.ready.append(f"drawn text: {font_facts(side)['font']}, heights {heights_of(side)}")
    if args.draw is not None:
        preflight.output(args.draw, "--draw")
        return

    output_needs(args, "text_readback", preflight)
    reader_needs(args.text_reader, "--text-reader", preflight)
    if args.vq_ckpt is not None:
        reconstructing_needs(args, preflight)
        return
    with preflight.collecting():
        pictures = StoredPictures(args.originals, "--originals")
        ReconstructedFiles(pictures, args.reconstructions, "--reconstructions")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    run_evaluation(args, evaluate)


if __name__ == "__main__":
    run_entry(main)
