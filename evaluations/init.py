"""Writes recipes that train a tokenizer and a GPT on a folder of pictures, and prints the commands to run.

    python -m evaluations.init my_pictures --output my_run
    python -m evaluations.init my_pictures --output my_run --layout flat --image-size 32

The folder has one sub-folder per class, or pictures at any depth without classes. Every image is read once, as
`python -m evaluations.data` does. --output gets tokenizer.yaml and gpt.yaml, which train in minutes on 2 CPU cores,
tokenizer_gpu.yaml and gpt_gpu.yaml for GPUs, and held_out.txt. Each value has its reason beside it. A tenth of each
class is held out; no held-out picture has a copy among those that are trained on. Nothing is trained without --run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.atomic_file import atomic_file
from engine.cli import entry_parser, positive, run_entry
from engine.data.held_out import held_out_text
from engine.data.layout import CLASSES, FLAT, FolderLayout, look_at_layout
from engine.messages import UserError, logger
from engine.outputs import free_name
from engine.pipeline import module_stage, run_stages
from engine.preflight import Preflight, require
from evaluations.own_data.fit import CPU, GPU, MIN_IMAGES, Target, suggestion_for
from evaluations.own_data.recipes import Plan, commands_of, other_files, recipe_texts, require_outside
from evaluations.own_data.scan import scan_folder
from evaluations.own_data.split import DEFAULT_SHARE, RULE, held_out_names
from evaluations.own_data.survey import Survey
from evaluations.pipelines.stages import report_stage

HELD_OUT = "held_out.txt"


def share(text: str) -> float:
    """The argparse type of the share of held-out images: from 0 to 0.5."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 0.5")
    return value


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # The pictures, and where the recipes go.
    parser.add_argument("pictures", type=Path, help="folder: one sub-folder per class, or pictures at any depth")
    parser.add_argument("--output", required=True, type=Path, help="folder for the recipes, and for what they make")
    parser.add_argument(
        "--layout", choices=[CLASSES, FLAT], help="how to read it (default: classes, where nothing is lost by that)"
    )

    # What the recipes say.
    parser.add_argument("--image-size", type=positive, help="pixels (default: what suits the pictures and the machine)")
    parser.add_argument(
        "--held-out", type=share, default=DEFAULT_SHARE, metavar="SHARE",
        help=f"share of the pictures of each class to hold out, at most 0.5 (default {DEFAULT_SHARE})",
    )  # fmt: skip
    parser.add_argument(
        "--run", action="store_true", help="also run the commands for the CPU, one after the other; resumable"
    )
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------ the recipes
def read_folder(folder: Path, layout: FolderLayout) -> Survey:
    """Reads all images. Raises UserError where too few can be read."""
    survey = Survey(layout, scan_folder(folder, layout.images))
    count = len(survey.scan.images)
    if count < MIN_IMAGES:
        broken = f" ({len(survey.scan.broken):,} are broken)" if survey.scan.broken else ""
        raise UserError(f"{folder} holds {count} readable images{broken}; {MIN_IMAGES} or more are needed")
    return survey


def write_recipes(args: argparse.Namespace, survey: Survey) -> dict[Target, Plan]:
    """Writes the recipes and the list of held-out images; files that are there with the same content are left alone.

    Raises UserError where files with another content are there.
    """
    # What is held out.
    output = args.output.absolute()
    names = held_out_names(survey, args.held_out)
    held_out = output / HELD_OUT if names else None
    files = {held_out: held_out_text(names, RULE)} if held_out is not None else {}

    # The recipes, all of which are checked before any is written.
    plans = {}
    for target in (CPU, GPU):
        suggestion = suggestion_for(survey, target, len(survey.scan.images) - len(names), args.image_size)
        plans[target] = Plan(survey, target, suggestion, output, held_out, len(names))
        files |= {path: text.encode() for path, text in recipe_texts(plans[target]).items()}
    others = other_files(files)
    if others:
        shown = ", ".join(path.name for path in others)
        raise UserError(
            f"--output {args.output} holds {shown} with another content; nothing is overwritten: run its commands one "
            f"by one, or give another folder, such as {free_name(args.output)}"
        )

    output.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        if path.exists():
            logger.info("%s is there already", path)
            continue
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
        logger.info("wrote %s", path)
    return plans


def show_commands(plans: dict[Target, Plan], uses_vt: bool) -> None:
    """Prints what to run."""
    for target, plan in plans.items():
        print(f"\non {target.title}:")
        for command in commands_of(plan):
            print(f"  # {command.title}\n  {command.shown(uses_vt)}")


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the folder of pictures, and a place for the recipes outside of it."""
    if preflight.folder(args.pictures, "pictures"):
        with preflight.collecting():
            require_outside(args.output, args.pictures)
    preflight.output(args.output, "--output")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    survey = read_folder(args.pictures, look_at_layout(args.pictures, args.layout))
    plans = write_recipes(args, survey)
    show_commands(plans, uses_vt=sys.argv[0].startswith("vt "))

    if args.run:
        commands = commands_of(plans[CPU])
        stages = [module_stage(command.module, command.module, *command.arguments) for command in commands[:-1]]
        run_stages(plans[CPU].run.root, [*stages, report_stage(plans[CPU].run.root)])


if __name__ == "__main__":
    run_entry(main)
