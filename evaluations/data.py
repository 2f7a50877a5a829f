"""Looks at a folder of pictures: what is in it, what is wrong with it, and what a recipe would do with it.

    python -m evaluations.data my_pictures
    python -m evaluations.data my_pictures --recipe configs/vq/VQ_SS256.yaml --output my_pictures.json

Every image is read once: classes with their counts, sizes, kinds of files, EXIF orientation, broken files by name, and
copies, as equal files and as equal pictures. Then come image sizes, batches and steps that suit the images, with
reasons. Nothing is changed. `python -m evaluations.init` writes recipes with these values.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from engine.atomic_file import write_atomic
from engine.cli import entry_parser, positive, run_entry
from engine.data.layout import CLASSES, FLAT, look_at_layout
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.outputs import require_absent, require_suffix
from engine.preflight import Preflight, require
from engine.recipe_names import recipe_file
from evaluations.own_data.fit import CPU, GPU, MIN_IMAGES, fit_of_recipe, suggestion_for
from evaluations.own_data.scan import scan_folder
from evaluations.own_data.split import held_out_names
from evaluations.own_data.survey import Survey, survey_values
from evaluations.own_data.survey_text import fit_line, suggestion_lines, survey_lines
from evaluations.trainers import recipe_tree


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # The pictures.
    parser.add_argument("pictures", type=Path, help="folder: one sub-folder per class, or pictures at any depth")
    parser.add_argument(
        "--layout", choices=[CLASSES, FLAT], help="how to read it (default: classes, where nothing is lost by that)"
    )

    # What is said of them, and where.
    parser.add_argument(
        "--recipe", action="append", default=[], metavar="FILE",
        help="say what this recipe would do with the pictures: a YAML file, or a name such as vq/VQ_SS256; repeatable",
    )  # fmt: skip
    parser.add_argument("--limit", type=positive, help="read only so many images, chosen at random (default: all)")
    parser.add_argument("--output", type=Path, help="write everything as JSON, all names included")
    return parser.parse_args()


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the folder, the recipes, and a place for the result."""
    preflight.folder(args.pictures, "pictures")
    for recipe in args.recipe:
        with preflight.collecting():
            preflight.ready.append(f"--recipe: {recipe_file(recipe)}")
    if args.output is not None:
        with preflight.collecting():
            require_suffix(args.output, ".json", "--output")
            require_absent(args.output, "--output")
        preflight.output_file(args.output, "--output")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))

    # Everything that is known of the images.
    layout = look_at_layout(args.pictures, args.layout)
    survey = Survey(layout, scan_folder(args.pictures, layout.images, args.limit))
    values = survey_values(survey)
    lines = list(survey_lines(values))
    if not survey.scan.images:
        raise UserError("\n".join([*lines, "none of the images can be read"]))

    # What recipes would do with them.
    lines.append("")
    fits = {name: fit_of_recipe(survey, recipe_tree([name]), name) for name in args.recipe}
    lines += [fit_line(fit, len(survey.scan.images), name) for name, fit in fits.items()]
    if args.limit is None and len(survey.scan.images) < MIN_IMAGES:
        lines.append(f"too few to train on: init writes recipes for {MIN_IMAGES} readable images or more")
    num_training = len(survey.scan.images) - len(held_out_names(survey))
    suggestions = {target: suggestion_for(survey, target, num_training) for target in (CPU, GPU)}
    for target, suggestion in suggestions.items():
        lines += suggestion_lines(suggestion, target)

    print("\n".join(lines))
    if args.output is not None:
        values["recipes"] = {name: asdict(fit) for name, fit in fits.items()}
        values["suggested"] = {target.title: suggestion.values() for target, suggestion in suggestions.items()}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, to_json(values, indent=1))
        logger.info("wrote %s", args.output)


if __name__ == "__main__":
    run_entry(main)
