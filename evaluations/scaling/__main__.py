"""Draws several tokenizers in one picture: a metric against their size or training, or against another metric.

    python -m evaluations.scaling runs/ --output scaling
    python -m evaluations.scaling runs/VQ_SS256 runs/VQ_SB256 runs/VQ_BL256 --plot rfid:parameters --plot rfid:gfid
    python -m evaluations.scaling runs/ results/ar_probe --plot ar_probe/gfid:gfid
    python -m evaluations.scaling --figure gigatok_7 --series "with semantic regularization" runs/SS runs/SB runs/BL \\
        --series vanilla runs/vanilla_SS runs/vanilla_SB runs/vanilla_BL

A point is one tokenizer, with all results that were measured with it: name folders of runs, of AR probings and of
probes, folders of such folders, or result files. They are joined by the fingerprint of the tokenizer. `--plot Y:X`
draws Y over X. Each is a size (parameters, tokens, steps, images, compute), a metric such as rfid, or RESULT/METRIC
such as ar_probe/gfid or search/gfid. `--figure` draws the pictures of a figure of GigaTok's paper.

Bars are 95 % intervals. Numbers of other protocols than most points have, and numbers that were forced, are left out
and named; with --mixed they are drawn hollow. A rank correlation stands below each picture, with an interval that is
wide where points are few. The folder gets index.html, one SVG per picture, and points.csv. See docs/several_runs.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.cli import entry_parser, run_entry
from engine.counts import counted
from engine.messages import UserError, logger
from engine.preflight import Preflight, require
from evaluations.results import scalars_of
from evaluations.scaling.figures import FIGURES, Pair, default_pairs, pairs_of_figure, typed_pair
from evaluations.scaling.page import claim_folder, write_pictures
from evaluations.scaling.panels import Panel, make_panel
from evaluations.scaling.readings import Point, read_points
from evaluations.scaling.sizes import SIZES, SizedTokenizer

DEFAULT_OUTPUT = Path("scaling")


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of runs, folders of those, or result files")
    parser.add_argument(
        "--series", nargs="+", action="append", default=[], metavar=("NAME", "PATH"),
        help="a line of its own, with a name: the runs and result files that belong to it; may be repeated",
    )  # fmt: skip

    # What is drawn.
    parser.add_argument(
        "--plot", action="append", default=[], metavar="Y:X", help="a picture of Y over X; may be repeated"
    )
    parser.add_argument("--figure", choices=FIGURES, help="the pictures of a figure of GigaTok's paper")
    parser.add_argument(
        "--mixed", action="store_true", help="also draw what may not be compared: hollow, and in no correlation"
    )
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help=f"folder for the page (default {DEFAULT_OUTPUT})"
    )
    return parser.parse_args()


def series_of(args: argparse.Namespace) -> dict[str, list[Path]]:
    """{name: paths} of the lines. Raises UserError where none is named, or one is named in a wrong way."""
    series: dict[str, list[Path]] = {"": args.runs} if args.runs else {}
    for name, *paths in args.series:
        if not paths:
            raise UserError(f"--series {name} has no runs: it takes a name, then folders or result files")
        if name in series:
            raise UserError(f"--series {name} is given twice; name all of its runs once")
        series[name] = [Path(path) for path in paths]
    if not series:
        raise UserError("name runs or result files, such as runs/, or --series NAME PATH")
    return series


def points_of(series: Mapping[str, Sequence[Path]]) -> tuple[list[Point], list[str]]:
    """(the tokenizers of all lines, what was left out). Raises UserError where there is no tokenizer."""
    points, left_out = read_points(series)
    if not points:
        raise UserError("none of these results says which tokenizer was measured:\n  " + "\n  ".join(left_out))
    return points, left_out


def name_of(series: Mapping[str, Sequence[Path]]) -> str:
    """What the page is known by: the names of its series and folders."""
    parts = []
    for name, paths in series.items():
        folders = " / ".join(path.resolve().name for path in paths)
        parts.append(f"{name}: {folders}" if name else folders)
    return "; ".join(parts)


# ------------------------------------------------------------------------------------------------ what is drawn
def panels_of(args: argparse.Namespace, points: Sequence[Point]) -> list[Panel]:
    """The pictures that have points. Raises UserError where a pair that was asked for has none."""
    sized = [(point, SizedTokenizer(point)) for point in points]
    pairs = [typed_pair(text) for text in args.plot]
    if args.figure is not None:
        pairs += pairs_of_figure(FIGURES[args.figure], points)
    if not pairs:
        pairs = default_pairs(sized)
    if not pairs:
        raise UserError(f"no metric stands in two or more of {counted(len(points), 'tokenizer')}; {_available(points)}")

    panels = []
    for pair in dict.fromkeys(pairs):
        panel = make_panel(pair.x, pair.y, sized, args.mixed, pair.note)
        if panel.dots:
            panels.append(panel)
            continue
        if args.figure is None:
            raise UserError(_nothing_to_draw(pair, panel, points))
        logger.warning("%s is left out: %s", panel.title, "; ".join(panel.left_out))
    if not panels:
        raise UserError(f"no picture of {args.figure} has a point; {_available(points)}")
    return panels


def _nothing_to_draw(pair: Pair, panel: Panel, points: Sequence[Point]) -> str:
    reasons = "\n  ".join(panel.left_out)
    return f"no tokenizer has both {pair.y.text} and {pair.x.text}:\n  {reasons}\n{_available(points)}"


def _available(points: Sequence[Point]) -> str:
    """What could be drawn."""
    names = {
        f"{measured.place}/{metric}".lstrip("/")
        for point in points
        for measured in point.results
        for metric in scalars_of(measured.result["metrics"])
    }
    return f"these results hold {', '.join(sorted(names)) or 'no number'}; sizes are {', '.join(SIZES)}"


# ------------------------------------------------------------------------------------------------ the command
def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the results, and a place for the page."""
    with preflight.collecting():
        series = series_of(args)
        points, _ = points_of(series)
        preflight.ready.append(f"{counted(len(points), 'tokenizer')} with results")
        claim_folder(args.output, name_of(series))
    preflight.output(args.output, "--output")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    series = series_of(args)
    name = name_of(series)
    points, left_out = points_of(series)
    claim_folder(args.output, name)

    # What is not drawn is told here too, and not on the page alone.
    panels = panels_of(args, points)
    for line in left_out:
        logger.warning("left out: %s", line)
    for panel in panels:
        for line in panel.left_out:
            logger.warning("%s: %s", panel.title, line)
        for agreement in panel.agreements:
            logger.info("%s: %s", panel.title, agreement.text)

    title = FIGURES[args.figure].about if args.figure is not None else f"{counted(len(points), 'tokenizer')}: {name}"
    for path in write_pictures(args.output, name, title, panels, left_out):
        logger.info("wrote %s", path)


if __name__ == "__main__":
    run_entry(main)
