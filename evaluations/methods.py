"""Trains systems of the quick start with several seeds each, and writes a page that shows them side by side.

    python -m evaluations.methods --page methods.md                  every system, 3 seeds: hours on 2 CPU cores
    python -m evaluations.methods --systems ema fsq --seeds 2        two of them, beside the plain system
    python -m evaluations.methods --dry-run                          the commands, and which are done

Each run is one of `python -m evaluations.quickstart --system NAME --seed N` in --runs-dir. The systems that others are
compared with are there, too: the plain one, and that whose codes a generator has. The same command continues where it
was stopped. The page is written anew after each run, and beside it a file of the numbers of all runs, as methods.json.
Runs in that file are not repeated, so several machines can share the work. docs/methods.md is ours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.atomic_file import write_atomic
from engine.cli import entry_parser, positive, run_entry
from engine.messages import logger
from engine.pipeline import Stage, StageError, StageLog, run_stages
from engine.preflight import Preflight, require
from evaluations.pipelines.methods import METHODS, compared_with, finished_runs, recorded_runs, stages_of
from evaluations.pipelines.methods_page import page_of
from evaluations.pipelines.methods_record import read_record, record_of, write_record
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
    parser.add_argument(
        "--page", type=Path, help="the page, and the place of its numbers (default methods.md in --runs-dir)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and which are done, then exit")
    args = parser.parse_args()

    # With what systems are compared, in the order of all.
    compared = {DEFAULT_SYSTEM, *args.systems, *map(compared_with, args.systems)}
    args.systems = [name for name in SYSTEMS if name in compared]

    # The page and its numbers are two files.
    args.page = args.page or args.runs_dir / "methods.md"
    if args.page == record_of(args.page):
        parser.error(f"--page {args.page}: the numbers of the page get this name; give the page another ending, as .md")
    return args


def needs(args: argparse.Namespace, stages: list[Stage], preflight: Preflight) -> None:
    """Asks every run that is left what it needs, and looks for a place for the page."""
    needs_of_stages(args.runs_dir, "--runs-dir", stages, preflight)
    preflight.output_file(args.page, "--page")
    preflight.output_file(record_of(args.page), "the numbers beside --page")


def write_page(args: argparse.Namespace) -> None:
    """Writes the numbers of all runs that have ended, and the page of them."""
    record = record_of(args.page)
    runs = finished_runs(args.systems, args.seeds, args.runs_dir, read_record(record))
    write_record(record, runs)
    write_atomic(args.page, page_of(args.systems, args.seeds, runs))


def main() -> None:
    args = parse_args()
    recorded = read_record(record_of(args.page))
    stages = stages_of(args.systems, args.seeds, args.runs_dir, recorded)
    if args.dry_run:
        log = StageLog(args.runs_dir)
        for method, seed in recorded_runs(args.systems, args.seeds, recorded):
            print(f"done   {method}, seed {seed}: its numbers are in {record_of(args.page)}")
        for stage in stages:
            print(f"{'done ' if stage.is_done(log) else 'to do'}  {' '.join(stage.command)}")
        return
    require(args, lambda preflight: needs(args, stages, preflight), starts_scripts=True)

    def after_run(stage: Stage, failure: StageError | None) -> None:
        if failure is not None:
            raise failure
        write_page(args)
        logger.info("page %s", args.page)

    run_stages(args.runs_dir, stages, after_run)
    write_page(args)
    print(f"\n  {args.page}")


if __name__ == "__main__":
    run_entry(main)
