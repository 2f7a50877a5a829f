"""Measures every checkpoint of a tokenizer's training: reconstructions, a linear probe of its encoder, and AR probing.

    python -m evaluations.probe_checkpoints runs/VQ_BL256 --output probes/VQ_BL256
    python -m evaluations.probe_checkpoints runs/VQ_BL256 --output probes/VQ_BL256 --steps 250000,500000 \\
        --probes linear_probe,ar_probe --reconstruction-flags "--extractor inception --reference val"
    python -m evaluations.probe_checkpoints runs/quickstart/tokenizer --output runs/quickstart/checkpoints \\
        --linear-probe quickstart/linear_probe_tokenizer --ar-probe quickstart/ar_probe \\
        --ar-probe-set "gpt_overrides=[loop.steps=100]" --reconstruction-flags "--reference train"

It asks whether a linear probe of the encoder tells how good the generators of its codes will be (GigaTok, figure 13).
Train with loop.keep_every, so that checkpoints stay. A command that was stopped continues where it was, and checkpoints
that were added since are measured by the same command. OUTPUT has a folder per checkpoint, laid out as that of a run,
and scaling/index.html with the curves. Each stage is a command that --dry-run shows.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from engine.cli import entry_parser, run_entry
from engine.counts import counted
from engine.messages import logger
from engine.pipeline import StageLog, run_stages
from engine.preflight import Preflight, require
from evaluations.pipelines.checkpoint_probes import (
    PICTURES,
    PROBES,
    ProbeSettings,
    checkpoints_of,
    keep_weights,
    stages_of,
    stages_of_checkpoint,
)
from evaluations.pipelines.commands import keep_commands
from evaluations.pipelines.running import needs_of_stages


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the training of a tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results, one folder per checkpoint")

    # What is measured.
    parser.add_argument("--steps", type=_steps, help="checkpoints to measure, such as 1000,2000 (default: all)")
    parser.add_argument(
        "--probes", type=_probes, default=PROBES, help=f"some of {','.join(PROBES)} (default: all of them)"
    )

    # How.
    parser.add_argument(
        "--reconstruction-flags", type=shlex.split, default=[], metavar="FLAGS",
        help='further flags of evaluations.reconstruction, in one text such as "--extractor inception"',
    )  # fmt: skip
    for name, recipe, what in (
        ("linear-probe", "eval/linear_probe_tokenizer", "the linear probe"),
        ("ar-probe", "eval/ar_probe", "AR probing"),
    ):
        parser.add_argument(
            f"--{name}", action="append", metavar="RECIPE", help=f"recipe of {what} (default {recipe}); may be repeated"
        )
        parser.add_argument(
            f"--{name}-set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"sets a key of the recipe of {what}",
        )
    parser.add_argument("--dry-run", action="store_true", help="list all commands, then exit")
    args = parser.parse_args()
    args.linear_probe = args.linear_probe or ["eval/linear_probe_tokenizer"]
    args.ar_probe = args.ar_probe or ["eval/ar_probe"]
    return args


def _steps(text: str) -> list[int]:
    """The argparse type of a list of steps."""
    return [int(step) for step in text.split(",")]


def _probes(text: str) -> tuple[str, ...]:
    """The argparse type of a list of probes."""
    probes = tuple(text.split(","))
    if not set(probes) <= set(PROBES):
        raise argparse.ArgumentTypeError(f"{text!r} must be some of {','.join(PROBES)}")
    return probes


def settings_of(args: argparse.Namespace) -> ProbeSettings:
    """What the flags say about each checkpoint."""
    return ProbeSettings(
        probes=args.probes,
        reconstruction_flags=tuple(args.reconstruction_flags),
        linear_probe=tuple(args.linear_probe),
        linear_probe_overrides=tuple(args.linear_probe_set),
        ar_probe=tuple(args.ar_probe),
        ar_probe_overrides=tuple(args.ar_probe_set),
    )


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the checkpoints, and for what the first that is not measured needs: the others need the same."""
    with preflight.collecting():
        checkpoints = checkpoints_of(args.run, args.steps)
        preflight.ready.append(f"{args.run}: {counted(len(checkpoints), 'checkpoint')}")
        log = StageLog(args.output)
        for name, checkpoint in checkpoints.items():
            stages = stages_of_checkpoint(name, checkpoint, args.output, settings_of(args))
            if not all(stage.is_done(log) for stage in stages):
                needs_of_stages(args.output, "--output", stages, preflight)
                break


def main() -> None:
    args = parse_args()
    checkpoints = checkpoints_of(args.run, args.steps) if args.dry_run else {}
    if args.dry_run:
        for stage in stages_of(args.output, checkpoints, settings_of(args)):
            print(" ".join(stage.command))
    require(args, lambda preflight: needs(args, preflight), starts_scripts=True)

    # Which weights, and by which commands, before anything is measured.
    checkpoints = checkpoints_of(args.run, args.steps)
    stages = stages_of(args.output, checkpoints, settings_of(args))
    keep_commands(args.output, "--output", stages, StageLog(args.output))
    keep_weights(args.output, checkpoints)
    run_stages(args.output, stages)
    logger.info("%s: the curves are in %s", args.run, args.output / PICTURES / "index.html")


if __name__ == "__main__":
    run_entry(main)
