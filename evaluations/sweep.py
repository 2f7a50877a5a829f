"""Trains one recipe with many settings, a grid of values or random draws, and writes a page that compares the runs.

    python -m evaluations.sweep --config configs/quickstart/tokenizer.yaml --folder runs/sweep loop.steps=200 \\
        --grid optim.lr=5e-4,1e-3,2e-3 --grid model.quantizer.vq.codebook_size=128,256
    python -m evaluations.sweep --config configs/quickstart/tokenizer.yaml --folder runs/random loop.steps=200 \\
        --random 8 --seed 1 --range optim.lr=1e-4:1e-2:log --grid model.quantizer.vq.l2_norm=true,false
    python -m evaluations.sweep --config configs/quickstart/gpt.yaml --folder runs/gpt --grid loop.seed=0,1,2 --dry-run

Each run has a folder of its own in --folder, whose name says its values. The trainer follows from the recipe. All
combinations are checked before the first starts. A run that fails does not end the sweep; it is named at the end. The
same command continues a sweep that was stopped: finished runs are skipped, failed ones are tried again, and values that
were added are trained. After each run the page <folder>/report.html is written anew. See docs/report.md.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Container, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from autoregressive.training.build import network_on_meta
from autoregressive.training.config import GPTTrainConfig
from engine.cli import entry_parser, not_negative, positive, run_entry
from engine.config import flatten, load_config
from engine.config_merge import UnsetVariable
from engine.counts import counted
from engine.messages import ConfigError, UserError, logger
from engine.pipeline import StageLog, config_flags
from engine.preflight import Preflight, require
from engine.recipe_names import recipe_file
from evaluations.digits.training import ClassifierTrainConfig
from evaluations.pipelines.sweep import (
    SweepRecord,
    Values,
    distinct,
    grid_of,
    name_of,
    overrides_of,
    parse_choices,
    parse_range,
    random_draws,
    stage_of,
    train_all,
)
from evaluations.probes.task import LinearProbeConfig
from evaluations.readback.training import ReaderTrainConfig
from evaluations.report.write import write_report
from evaluations.trainers import recipe_tree, trainer_of
from tokenizer.training.checks import validate
from tokenizer.training.config import TokenizerTrainConfig

# What a sweep can train -> its config, and the check across sections.
SCHEMAS: dict[str, tuple[type, Callable[[Any], Any] | None]] = {
    "tokenizer.train": (TokenizerTrainConfig, validate),
    "autoregressive.train": (GPTTrainConfig, network_on_meta),
    "evaluations.linear_probe": (LinearProbeConfig, None),
    "evaluations.classifier": (ClassifierTrainConfig, None),
    "evaluations.text_reader": (ReaderTrainConfig, None),
}
MAX_LISTED = 20  # problems of combinations that are told
MAX_RUNS = 1000  # of one sweep


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument(
        "--config", action="append", required=True, metavar="FILE",
        help="recipe that all runs share: a YAML file or the name of a recipe; may be repeated, later ones win",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, required=True, help="folder of the sweep, with one folder per run")

    # What is varied.
    parser.add_argument(
        "--grid", action="append", default=[], metavar="KEY=A,B", help="values of a key; all combinations are trained"
    )
    parser.add_argument(
        "--range", action="append", default=[], metavar="KEY=LOW:HIGH[:log]", help="with --random: a range of numbers"
    )
    parser.add_argument("--random", type=positive, metavar="N", help="train N random draws instead of all combinations")
    parser.add_argument("--seed", type=not_negative, default=0, help="seed of the random draws (default 0)")

    parser.add_argument("--dry-run", action="store_true", help="check all runs and list them, then exit")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key for all runs")
    return parser.parse_intermixed_args()


# ------------------------------------------------------------------------------------------------ the runs
def runs_of(args: argparse.Namespace) -> dict[str, Values]:
    """{name: values} of all runs that a command asks for. Raises UserError where it asks for none."""
    choices = [parse_choices(text) for text in args.grid]
    ranges = [parse_range(text) for text in args.range]
    keys = [item.key for item in (*choices, *ranges)]
    if not keys:
        raise UserError("nothing is varied: give --grid KEY=A,B, or --random N with --range KEY=LOW:HIGH")
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated or "loop.run_dir" in keys:
        raise UserError(f"{(repeated or ['loop.run_dir'])[0]} cannot be varied so; name each key once")
    _require_unset(args.overrides, keys)
    if ranges and args.random is None:
        raise UserError("--range needs --random N, the number of draws")

    # More runs than anyone means would take a day to list alone.
    count = math.prod(len(choice.values) for choice in choices) if args.random is None else args.random
    if count > MAX_RUNS:
        raise UserError(f"these are {count:,} runs; a sweep has {MAX_RUNS:,} at most")
    if args.random is None:
        combinations = grid_of(choices)
    else:
        combinations = random_draws([*choices, *ranges], args.random, args.seed)
    return {name_of(values): values for values in combinations}


def _require_unset(overrides: Sequence[str], varied: Sequence[str]) -> None:
    """Raises UserError for a key that is set for all runs although the sweep gives each run its value."""
    for override in overrides:
        key = override.partition("=")[0]
        if key == "loop.run_dir":
            raise UserError(f"{override}: each run of a sweep has a folder of its own below --folder; leave it out")
        if key in varied:
            raise UserError(f"{override}: this sweep varies {key}; leave out one of the two")


class SweepConfigs:
    """The configs of the runs of a sweep: what all share, with the values of each. `unset` are the environment
    variables that they lack on this machine.
    """

    def __init__(self, module: str, files: Sequence[Path], overrides: Sequence[str]) -> None:
        self.module = module
        self.unset: list[UnsetVariable] = []
        self._schema, self._check = SCHEMAS[module]
        self._files, self._overrides = files, overrides

    def settings(self, values: Values, *, check: bool = False) -> dict[str, Any]:
        """{dotted key: value} of the config of a run, without its folder. Raises ConfigError where it is wrong."""
        unset: list[UnsetVariable] = []
        asked = self._check if check else None
        config = load_config(self._schema, self._files, [*self._overrides, *overrides_of(values)], asked, unset)
        if asked is not None:
            asked(config)
        self.unset += [variable for variable in unset if variable not in self.unset]
        settings = flatten(config)
        settings.pop("loop.run_dir")
        return settings

    def checked(self, runs: dict[str, Values]) -> dict[str, dict[str, Any]]:
        """{name: settings} of all runs. Raises ConfigError with the problems of all, each told once."""
        settings: dict[str, dict[str, Any]] = {}
        problems: dict[str, list[str]] = {}
        for name, values in runs.items():
            try:
                settings[name] = self.settings(values, check=True)
            except ConfigError as error:
                for problem in error.problems:
                    problems.setdefault(problem, []).append(name)
        if problems:
            lines = [f"{problem} ({len(names)} of {len(runs)} runs)" for problem, names in problems.items()]
            raise ConfigError("\n  ".join(["runs of this sweep cannot be trained:", *lines[:MAX_LISTED]]), lines)
        return settings

    def recorded(self, record: SweepRecord, asked: Container[str]) -> dict[str, dict[str, Any]]:
        """{name: settings} of the runs on record beside those `asked` for, as far as they can be trained now."""
        settings = {}
        for name, values in record.values().items():
            try:
                if name not in asked:
                    settings[name] = self.settings(values)
            except ConfigError:  # it is from another version, or of a recipe that was changed
                continue
        return settings

    def recipe(self, runs: dict[str, Values]) -> dict[str, Any]:
        """What all runs share: the trainer, and the config without the keys that are varied."""
        varied = {key for values in runs.values() for key in values}
        (first, *_) = runs.values()
        shared = {key: value for key, value in self.settings(first).items() if key not in varied}
        return {"trainer": self.module, "config": shared}


def trainer_module(files: Sequence[str]) -> str:
    """The command that trains the recipe. Raises UserError for one that a sweep cannot run."""
    trainer, _ = trainer_of(recipe_tree(files), " and ".join(files))
    if trainer.module not in SCHEMAS:
        raise UserError(f"--config {' '.join(files)} is for {trainer.module}; a sweep can run {', '.join(SCHEMAS)}")
    return trainer.module


class Plan:
    """What a command asks for: the trainer, the runs, and what they share. It is read and checked once, when needed."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    @cached_property
    def files(self) -> list[Path]:
        """The YAML files that all runs share."""
        return [recipe_file(file) for file in self._args.config]

    @cached_property
    def module(self) -> str:
        """The command that trains."""
        return trainer_module(self._args.config)

    @cached_property
    def configs(self) -> SweepConfigs:
        """Of all runs."""
        return SweepConfigs(self.module, self.files, self._args.overrides)

    @cached_property
    def runs(self) -> dict[str, Values]:
        """{name: values}; all of them can be trained, and no two are the same training. A run that is on record in
        another spelling keeps its name.
        """
        asked = runs_of(self._args)
        settings = self.configs.checked(asked)
        runs, notes = distinct(asked, settings, self.configs.recorded(SweepRecord(self._args.folder), asked))
        for note in notes:
            logger.info("%s", note)
        return runs

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """What all runs share."""
        return self.configs.recipe(self.runs)


def needs(args: argparse.Namespace, plan: Plan, preflight: Preflight) -> None:
    """Looks at all configs, and for a place for the sweep. What a run needs is looked for when it starts."""
    with preflight.collecting():
        preflight.ready.append(f"{counted(len(plan.runs), 'run')} of {plan.module}")
        SweepRecord(args.folder).require_same_recipe(plan.recipe)
        preflight.variables(plan.configs.unset)
    preflight.output(args.folder, "--folder")


# ------------------------------------------------------------------------------------------------ the command
def main() -> None:
    args = parse_args()
    plan = Plan(args)
    if args.dry_run:
        print_runs(args.folder, plan.runs)
    require(args, lambda preflight: needs(args, plan, preflight), starts_scripts=True)

    # Runs of one sweep stand together on wandb, unless the user groups them in another way.
    folder: Path = args.folder
    os.environ.setdefault("WANDB_RUN_GROUP", folder.resolve().name)
    folder.mkdir(parents=True, exist_ok=True)
    record = SweepRecord(folder)
    record.plan(plan.recipe, plan.runs)
    arguments = [*config_flags(plan.files), *args.overrides]
    stages = [stage_of(name, values, folder, plan.module, arguments) for name, values in plan.runs.items()]

    failed = train_all(folder, stages, record, lambda: _write_page(folder))
    page = write_report([folder])
    total = len(plan.runs)
    logger.info("%d of %d runs are finished; they are compared in %s", total - len(failed), total, page)
    if failed:
        raise UserError(f"{len(failed)} of {total} runs failed: {', '.join(failed)}; the same command tries them again")


def print_runs(folder: Path, runs: dict[str, Values]) -> None:
    """Every run with its values, and which are finished."""
    done = StageLog(folder)
    for name, values in runs.items():
        mark = " (finished)" if done.done(name) else ""
        print(f"{name}{mark}: {' '.join(overrides_of(values))}")
    print(f"{counted(len(runs), 'run')} in {folder}")


def _write_page(folder: Path) -> None:
    """The page between two runs. That it cannot be written now does not end the sweep."""
    try:
        write_report([folder])
    except (UserError, OSError) as error:
        logger.warning("warning: no page: %s", error)


if __name__ == "__main__":
    run_entry(main)
