"""Runs everything from end to end on real images: tokenizer -> codes -> GPT -> samples -> metrics -> report.

    bash scripts/quickstart.sh                       handwritten digits (mnist5k), 32 px, minutes on 2 CPU cores
    bash scripts/quickstart.sh --data twemoji        color emoji, 64 px, longer
    bash scripts/quickstart.sh --system text         drawn words, a part of which can be read back after the tokenizer
    bash scripts/quickstart.sh --system wetok        WeTok: two phases of the tokenizer, a GPT with a factorized head
    bash scripts/quickstart.sh --system rvq          residual codes: two levels per token (--system mcq: two groups)
    bash scripts/quickstart.sh --system fsq          codes without a codebook (--system ema: a codebook of averages)
    bash scripts/quickstart.sh --system rar          a GPT that learns tokens in random orders first
    bash scripts/quickstart.sh --system bar          WeTok's codes, whose 16 bits a GPT writes a few at a time
    bash scripts/quickstart.sh --system maskgit      a masked generator, which draws an image in 8 passes
    bash scripts/quickstart.sh --system var          codes of four scales, each drawn in one pass
    bash scripts/quickstart.sh --system flexible     images of 1 to 16 tokens
    bash scripts/quickstart.sh --system decoder      a decoder that is trained on alone, on the codes it has
    NPROC_PER_NODE=2 bash scripts/quickstart.sh      the same on two processes
    bash scripts/quickstart.sh --fresh               a new run beside the old one, which stays
    bash scripts/quickstart.sh --short               a few steps of everything, with all losses on: a test, not a result
    bash scripts/quickstart.sh --seed 2              other initial weights and another order: how far do numbers move?
    bash scripts/quickstart.sh --complete            also guidance search, validation loss, probes, text, AR probing

Systems that differ by their generator only take the tokenizer and the codes of a finished run beside them: rar and
maskgit of the default system, bar of wetok. Without one they train their own.

Running the same command again continues the run: finished stages are skipped, and a killed one resumes from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from engine.assets import AssetsConfig, assets_of
from engine.atomic_file import write_atomic
from engine.cli import entry_parser, positive, run_entry
from engine.config import load_config
from engine.data.config import DataConfig
from engine.data.sources import attribution_of
from engine.installation import REQUESTED_PROCESSES
from engine.json_text import to_json
from engine.messages import logger
from engine.pipeline import run_stages
from engine.preflight import Preflight, require
from evaluations.digits.model import find_classifier
from evaluations.metrics.extractors import EXTRACTORS, OFFLINE_EXTRACTOR
from evaluations.pipelines.quickstart import (
    DATA,
    DEFAULT_SYSTEM,
    SYSTEMS,
    accuracy_of,
    check_flags,
    collect,
    results_table,
    run_folder,
    stages_of,
)
from evaluations.pipelines.stages import report_stage

RUN_BYTES = 200 * 10**6  # of a finished run


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # What is trained, and where.
    own_data = ", ".join(f"{system.data[0]} of {name}" for name, system in SYSTEMS.items())
    parser.add_argument("--data", choices=DATA, help=f"data set (default: {own_data})")
    parser.add_argument(
        "--system", default=DEFAULT_SYSTEM, choices=SYSTEMS, help=f"family of models (default {DEFAULT_SYSTEM})"
    )
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="folder in which the run folder is created (default runs)"
    )
    parser.add_argument("--fresh", action="store_true", help="start over in quickstart-2, -3, ...; delete nothing")

    # How much of it.
    parser.add_argument(
        "--short",
        action="store_true",
        help="run a few steps of everything, with all losses on; the numbers mean nothing",
    )
    parser.add_argument("--seed", type=positive, help="seed of all training runs (default: that in their YAMLs, 0)")
    parser.add_argument(
        "--classifier",
        type=Path,
        help="trained classifier that measures generated images, such as runs/quickstart/classifier (default: one is "
        "trained). Runs that are compared should have one",
    )
    parser.add_argument(
        "--complete",
        action="store_true",
        help="also run guidance search, validation loss, linear probes, text_readback and AR probing",
    )
    args = parser.parse_args()
    args.data = args.data or SYSTEMS[args.system].data[0]
    return args


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the packages that ship images and weights, and a place for the run."""
    data = DataConfig(name=args.data)
    for split in ("train", "val"):
        preflight.images(data, split)
    preflight.assets(assets_of(EXTRACTORS[OFFLINE_EXTRACTOR]), load_config(AssetsConfig))
    preflight.device("auto")
    if args.classifier is not None and not preflight.comes_later(args.classifier, "--classifier"):
        with preflight.collecting():
            find_classifier(args.classifier, classes=None, hashed=preflight.hashes)
            accuracy_of(args.classifier)
    preflight.output(run_folder(args), "--runs-dir", RUN_BYTES)


def main() -> None:
    args = parse_args()
    check_flags(args)
    require(args, lambda preflight: needs(args, preflight), starts_scripts=True)

    # Its batches are small: GPUs are not counted, as scripts/launch.sh would.
    if not any(os.environ.get(name) for name in REQUESTED_PROCESSES):
        os.environ[REQUESTED_PROCESSES[0]] = "1"
    run = run_folder(args)
    results_file = run / "results.json"
    logger.info("quick start on %s in %s (%s)", args.data, run, attribution_of(args.data))
    log = run_stages(run, stages_of(args, run))
    write_atomic(results_file, to_json(collect(run, log, args.classifier), indent=1))

    log = run_stages(run, [report_stage(run)])
    results = collect(run, log, args.classifier)
    write_atomic(results_file, to_json(results, indent=1))
    print(f"\n{results_table(results)}\n\n  {results_file}\n  {run / 'report.html'}\n  {run / 'samples.png'}")


if __name__ == "__main__":
    run_entry(main)
