"""Writes a self-contained HTML page for one run, or several side by side: numbers with their protocol, curves, images.

    python -m evaluations.report runs/quickstart
    python -m evaluations.report runs/VQ_SS256                 (one training, with its curves)
    python -m evaluations.report runs/                         (a folder of runs, or of a sweep: one row per run)
    python -m evaluations.report runs/ar_probe/A runs/ar_probe/B --output comparison.html

This command reads what a run left behind (metrics.jsonl of its networks, evaluations/*, results of probes), and writes
report.html and samples.png into the folder of the run. For several runs, the page begins with a table of them that a
click sorts: state, the config keys in which they differ, and the newest numbers. Their curves are laid over one
another, and results of the same kind are ranked where their protocols agree. An earlier page of the same runs is
replaced; no other file is. See docs/report.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.cli import entry_parser, run_entry
from engine.messages import logger
from engine.preflight import Preflight, require
from evaluations.report.write import open_runs, write_report


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or of several runs")
    parser.add_argument(
        "--output", type=Path, help="page to write (default: RUN/report.html; comparison.html for several folders)"
    )
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the run folders, and a place for the page."""
    for path in args.runs:
        with preflight.collecting():
            open_runs(path)
            preflight.ready.append(f"run: {path}")
    if args.output is not None:
        preflight.output_file(args.output, "--output")
    else:
        preflight.output(args.runs[0] if len(args.runs) == 1 else Path(), "report")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    logger.info("wrote %s", write_report(args.runs, args.output))


if __name__ == "__main__":
    run_entry(main)
