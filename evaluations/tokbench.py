"""Scores words that were read in the pictures of TokBench by another program: T-ACC and T-NED.

    python -m evaluations.tokbench --words readings.json --setting 256 --read-by "docTR PARSeq" --output tokbench.json
    python -m evaluations.tokbench --words readings/ --setting 512 --read-by "docTR PARSeq" --output tokbench512.json

TokBench's pictures and reader are not part of this program. --words is a JSON file, or a folder with one per image. A
file is a list of words: [{"image": "ic13/1.jpg", "ratio": 0.031, "read": "Cafe", "truth": "Cafe"}, ...]. `ratio` comes
with the annotations and decides the group of a word: for pictures of 256 px .02-.03, .03-.04 and .04-1, each without
its upper end. The result is the mean of every group and the unweighted mean of the three, with errors over images.

Without TokBench, evaluations.text_readback measures how much of drawn text can be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.checkpoint.manifest import json_digest
from engine.cli import entry_parser, run_entry
from engine.preflight import Preflight, require
from evaluations.cli import output_name, output_path
from evaluations.readback.given_words import GROUPS, read_given_words, score_words
from evaluations.results import claim_result, write_result


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("--words", type=Path, required=True, help="JSON file, or a folder of them")
    parser.add_argument("--setting", type=int, required=True, choices=sorted(GROUPS), help="side of the pictures, px")
    parser.add_argument(
        "--read-by", required=True, metavar="NAME",
        help="the program that read the words; results of different ones are not ranked",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="result file (JSON)")
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the words, and a place for the result."""
    with preflight.collecting():
        words = read_given_words(args.words, "--words")
        preflight.ready.append(f"--words: {len(words):,} words in {args.words}")
    with preflight.collecting():
        preflight.output(output_name(args, "tokbench").parent, "--output")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    output = output_path(args, "tokbench")
    words = read_given_words(args.words, "--words")
    measurement, facts = score_words(words, args.setting)
    truth = json_digest(sorted((word.image, word.ratio, word.truth) for word in words))[:16]
    protocol = {
        "kind": "given_words",
        "given_words": {"setting": args.setting, "read_by": args.read_by, "truth": truth, **facts},
        "samples": {"data": str(args.words)},
    }
    claim_result(output, protocol)
    ids = f"images by name, of the words {truth}"
    write_result(output, measurement.metrics, protocol, ids=ids, **measurement.sections())


if __name__ == "__main__":
    run_entry(main)
