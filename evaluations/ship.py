"""Makes the small models that come with the program, from finished runs of the quick start.

    python -m evaluations.ship gigatok=runs/quickstart wetok=runs/quickstart-wetok
    python -m evaluations.ship gigatok=runs/quickstart --replace --output models

Each NAME=RUN becomes the folders NAME/tokenizer and NAME/gpt of --output, by default those of this program, and is then
called shipped:NAME. The weights of the run (the averaged ones where there are some) are rounded to half precision, and
are float32 again when they are loaded. The rounded networks are measured below the run as the quick start measures, and
the cards (README.md) tell the results and what the rounding changed. A measurement that was stopped continues. All
models together must stay below 16 MB. Nothing is overwritten without --replace.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from engine.assets import AssetsConfig, assets_of
from engine.cli import entry_parser, positive, run_entry
from engine.config import load_config
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from engine.shipped_models import SHIPPED
from evaluations.metrics.extractors import EXTRACTORS, OFFLINE_EXTRACTOR
from evaluations.pipelines.quickstart import NUM_SAMPLES
from evaluations.shipping import (
    copy_pair,
    folder_bytes,
    measure,
    pair_bytes,
    pair_sources,
    require_free,
    rounded_pair,
    write_cards,
)

MAX_BYTES = 16 * 10**6  # of all models that come with the program
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="name of a model, and the run folder that it is of")
    parser.add_argument(
        "--output", type=Path, default=SHIPPED, help="folder of the models (default: that of this installation)"
    )
    parser.add_argument("--replace", action="store_true", help="replace models of these names")
    parser.add_argument(
        "--num-fid-samples", type=positive, default=NUM_SAMPLES, help=f"generated images (default {NUM_SAMPLES})"
    )
    return parser.parse_args()


def named_runs(args: argparse.Namespace) -> dict[str, Path]:
    """{name: run folder}. Raises UserError for anything else, and for a name that is given twice."""
    runs = {}
    for text in args.runs:
        name, equals, run = text.partition("=")
        if not (equals and run and NAME.fullmatch(name)):
            raise UserError(f"{text!r} must be NAME=RUN, such as gigatok=runs/quickstart; NAME of a-z, 0-9, - and _")
        if name in runs:
            raise UserError(f"the name {name} is given twice")
        runs[name] = Path(run)
    return runs


def ship(args: argparse.Namespace) -> None:
    """Measures all pairs first; only then anything is put in place."""
    made: dict[str, tuple[Path, list[str]]] = {}
    for name, run in named_runs(args).items():
        pair = rounded_pair(run)
        work = measure(run, pair, args.num_fid_samples)
        write_cards(name, run, pair, work)
        parts = [network.part for network in pair]
        require_free(args.output / name, work.root, parts, args.replace)
        made[name] = (work.root, parts)

    # What will be there: the new ones, and others that stay.
    others = [folder for folder in args.output.glob("*") if folder.is_dir() and folder.name not in made]
    total = sum(pair_bytes(work, parts) for work, parts in made.values()) + sum(map(folder_bytes, others))
    if total >= MAX_BYTES:
        accepted = f"less than {MAX_BYTES // 10**6} MB"
        raise UserError(f"all models together would be {total / 1e6:.1f} MB; accepted are {accepted}")

    for name, (work, parts) in made.items():
        copy_pair(work, args.output / name, parts)
    logger.info("%s: %.1f MB in all", args.output, total / 1e6)


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the runs, the network that measures, and a place for the models."""
    with preflight.collecting():
        for name, run in named_runs(args).items():
            pair_sources(run)
            preflight.ready.append(f"{name}: {run}")
            preflight.output(run, name)
    preflight.assets(assets_of(EXTRACTORS[OFFLINE_EXTRACTOR]), load_config(AssetsConfig))
    preflight.output(args.output, "--output", MAX_BYTES)


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight), starts_scripts=True)
    ship(args)


if __name__ == "__main__":
    run_entry(main)
