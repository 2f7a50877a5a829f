"""Trains systems of the quick start with several seeds each, and writes a page that shows them side by side.

    python -m evaluations.methods --page methods.md                  every system, 3 seeds: hours on 2 CPU cores
    python -m evaluations.methods --systems ema fsq --seeds 2        two of them, beside the plain system
    python -m evaluations.methods --dry-run                          the commands, and which are done

Each run is one of `python -m evaluations.quickstart --system NAME --seed N` in --runs-dir. The systems that others are
compared with are there, too: the plain one, and that whose codes a generator has. The same command continues where it
was stopped. The page is written anew after each run; docs/methods.md is ours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.atomic_file import write_atomic
from engine.cli import entry_parser, positive, run_entry
from engine.messages import logger
from engine.pipeline import Stage, StageError, StageLog, run_stages
from engine.preflight import Preflight, require
from evaluations.pipelines.methods import METHODS, compared_with, stages_of
from evaluations.pipelines.methods_page import page_of
from evaluations.pipelines.quickstart import DEFAULT_SYSTEM, SYSTEMS
from evaluations.pipelines.running import needs_of_stages


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument(
        "--systems", nargs="+", choices=METHODS, default=list(METHODS), help="what is compared with the plain system"
    )
    parser.add_argument("--seeds", type=positive, default=3, help="runs of each system (default 3)")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs/methods"), help="folder of the runs (default runs/methods)"
    )
    parser.add_argument("--page", type=Path, help="the page (default methods.md in --runs-dir)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and which are done, then exit")
    args = parser.parse_args()
    compared = {DEFAULT_SYSTEM, *args.systems, *map(compared_with, args.systems)}
    args.systems = [name for name in SYSTEMS if name in compared]
    args.page = args.page or args.runs_dir / "methods.md"
    return args


def needs(args: argparse.Namespace, stages: list[Stage], preflight: Preflight) -> None:
    """Asks every run that is left what it needs, and looks for a place for the page."""
    needs_of_stages(args.runs_dir, "--runs-dir", stages, preflight)
    preflight.output_file(args.page, "--page")


def main() -> None:
    args = parse_args()
    stages = stages_of(args.systems, args.seeds, args.runs_dir)
    if args.dry_run:
        log = StageLog(args.runs_dir)
        for stage in stages:
            print(f"{'done ' if stage.is_done(log) else 'to do'}  {' '.join(stage.command)}")
        return
    require(args, lambda preflight: needs(args, stages, preflight), starts_scripts=True)

    def write_page(stage: Stage, failure: StageError | None) -> None:
        if failure is not None:
            raise failure
        write_atomic(args.page, page_of(args.systems, args.seeds, args.runs_dir))
        logger.info("page %s", args.page)

    run_stages(args.runs_dir, stages, write_page)
    write_atomic(args.page, page_of(args.systems, args.seeds, args.runs_dir))
    print(f"\n  {args.page}")


if __name__ == "__main__":
    run_entry(main)
