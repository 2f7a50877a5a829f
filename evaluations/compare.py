"""Shows results side by side, and ranks them only if they were measured in the same way.

    python -m evaluations.compare results/A.json results/B.json

The networks may differ, since they are what is compared, and so may batch sizes and names of folders. Everything else
in the protocol should be equal: crop, rounding, sampler settings, number of images. A difference in a section that only
some metrics depend on (reference, LPIPS weights, ...) unranks those metrics; any other unranks all. Differences are
printed, and the exit code is then 3.

Beside a number stands half of its 95 % interval, which speaks of the sampling of images. A metric is ranked only where
the interval of the difference excludes 0. The differences of numbers over the same images are `paired`: what their
images have in common cancels. Numbers without an error are shown, and not ranked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.cli import entry_parser, run_entry
from engine.json_text import to_json
from engine.messages import UserError
from engine.preflight import Preflight, require
from evaluations.comparison import compare, differing_images
from evaluations.results import read_result

NOT_COMPARABLE = 3  # exit code


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="two or more result files (JSON)")
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the result files."""
    for path in args.results:
        preflight.file(path, "results")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    if len(args.results) < 2:
        raise UserError("name two or more results to compare")

    # The table, under names that are long enough to tell runs apart.
    results = [read_result(path) for path in args.results]
    columns = ["/".join(path.resolve().with_suffix("").parts[-3:]) for path in args.results]
    comparison = compare(list(zip(columns, results, strict=True)))
    print(comparison.text(columns))

    # What else may explain a difference.
    if len({to_json(result.get("libraries")) for result in results}) > 1:
        print("the library versions differ: see `libraries` in the files")
    images = differing_images(args.results)
    if images:
        print(images)

    if comparison.presets:
        print("\npublished protocols that were followed:")
        print("\n".join(f"  {line}" for line in comparison.presets))

    if comparison.gaps:
        print("\ndifferences, with 95 % intervals:")
        print("\n".join(f"  {line}" for line in comparison.gaps))

    if comparison.forced:
        print("\nforced, not to be trusted and never ranked:")
        print("\n".join(f"  {line}" for line in comparison.forced))
    if comparison.differences:
        print("\nnot ranked where the protocols differ from that of the first result:")
        print("\n".join(f"  {difference}" for difference in comparison.differences))
        raise SystemExit(NOT_COMPARABLE)
    print("\n* best by more than the interval of the difference; the protocols are equal")


if __name__ == "__main__":
    run_entry(main)
