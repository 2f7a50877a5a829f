"""Runs a published script: a look at all of its stages at once, the stages, and the numbers in one file."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.atomic_file import write_atomic
from engine.counts import counted
from engine.installation import REQUESTED_PROCESSES
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.pipeline import Stage, StageLog, run_stages
from engine.preflight import Preflight, joint_preflight, num_local_processes, require
from evaluations.cost_report import RECIPE_GPUS, Machines, assumptions, cost_report
from evaluations.pipelines.commands import keep_commands
from evaluations.pipelines.fit import config_arguments, fit_problems
from evaluations.pipelines.published_scripts import Script
from evaluations.pipelines.requests import Request
from evaluations.pipelines.stages import CODES
from evaluations.report.run_folder import results_of
from evaluations.results import numbers_text, scalars_of
from evaluations.workload import workloads_of

TRAINERS = ("tokenizer.train", "autoregressive.train")  # modules with a memory plan and an estimate of their cost


def run_script(args: argparse.Namespace, script_of: Callable[[Request], Script]) -> None:
    """Runs a script as its flags say.

    Raises UserError for whatever is missing for any of its stages, before the first one starts.
    """
    if os.environ.get("NNODES", "1") != "1":
        raise UserError(
            f"NNODES={os.environ['NNODES']}: a whole recipe runs on one machine. On several, start the commands that "
            "--dry-run shows one after the other, each on every machine"
        )
    request = Request(args, os.environ)
    script = script_of(request)
    log = StageLog(script.run)
    for note in script.notes:
        logger.info("note: %s", note)
    if args.dry_run:
        print(_overview(script, log, is_tiny=request.is_tiny))
    require(
        args,
        lambda preflight: needs_of_stages(script.run, "--run-dir", script.stages, preflight),
        starts_scripts=True,
    )

    # The stages. The report is the last one, and shows the numbers of all others.
    keep_commands(script.run, "--run-dir", script.stages, log)
    log = run_stages(script.run, script.stages)
    results = _collect(script.run, log)
    results_file = script.run / "results.json"
    write_atomic(results_file, to_json(results, indent=1))
    print(f"\n{_table(results)}\n\n  {results_file}\n  {script.run / 'report.html'}")


# ------------------------------------------------------------------------------------------------ before it starts
def needs_of_stages(run: Path, name: str, stages: Sequence[Stage], preflight: Preflight) -> None:
    """Asks all stages of a pipeline that are left what they need. What an earlier one writes need not be there yet.

    `run` is the folder of the pipeline, and `name` the flag or key that names it.
    """
    log = StageLog(run)
    stages_of: dict[str, list[str]] = {}  # problem -> the stages that have it
    preflight.output(run, name)
    for stage in stages:
        if stage.is_done(log) or stage.always:
            continue
        before = len(preflight.problems)
        _look(stage, preflight)
        for problem in preflight.problems[before:]:
            stages_of.setdefault(problem, []).append(stage.name)
        del preflight.problems[before:]
        preflight.later |= {path.absolute(): stage.name for path in _written_by(stage)}

    # What is wrong with single stages, and with networks that do not fit together.
    for problem, names in stages_of.items():
        preflight.problem(f"{problem} (stage {', '.join(names)})")
    for problem in fit_problems(stages):
        preflight.problem(problem)
    preflight.ready[:] = dict.fromkeys(preflight.ready)  # what several stages have in common is told once


def _written_by(stage: Stage) -> list[Path]:
    """What a stage writes and others read: a run folder, codes, a converted network."""
    arguments = stage.arguments
    run_dirs = [Path(item.removeprefix("loop.run_dir=")) for item in arguments if item.startswith("loop.run_dir=")]
    codes = [Path(arguments[arguments.index("--code-path") + 1])] if stage.name == CODES else []
    return [*run_dirs, *codes, *([stage.product] if stage.product else [])]


def _look(stage: Stage, preflight: Preflight) -> None:
    """Adds what a stage needs to `preflight`, by its own command in this process."""
    with preflight.collecting(), joint_preflight(preflight):
        code, _, errors = call_entry(stage.module, stage.arguments)
        if code != 0:
            raise UserError(f"the command of this stage is not accepted: {errors.strip()}")


def call_entry(module: str, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Runs `python -m module arguments` in this process: (exit code, standard output, standard error).

    For commands that only look or print. Raises the UserError of the command.
    """
    # The arguments are those of a process of its own, and only errors are logged.
    entry = importlib.import_module(module)
    arguments_before, level = sys.argv, logger.level
    output, errors = io.StringIO(), io.StringIO()
    sys.argv = [module, *arguments]
    logger.setLevel(logging.ERROR)

    # Both are restored however the command ends.
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            entry.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = arguments_before
        logger.setLevel(level)
    return code, output.getvalue(), errors.getvalue()


# ------------------------------------------------------------------------------------------------ a dry run
def _overview(script: Script, log: StageLog, *, is_tiny: bool) -> str:
    """The stages with their state and command, and what the trainings among them cost."""
    lines = [f"{script.name}: {counted(len(script.stages), 'stage')} in {script.run}"]
    for number, stage in enumerate(script.stages, start=1):
        state = "done" if stage.is_done(log) else "to do"
        lines.append(f"  {number}. {stage.name} ({state})\n     {' '.join(stage.command)}")
    if is_tiny:
        return "\n".join([*lines, "cost: minutes on a CPU (--scale tiny)"])

    gpus = num_local_processes(for_scripts=True)
    if not any(os.environ.get(name) for name in REQUESTED_PROCESSES):
        gpus = RECIPE_GPUS
    for stage in script.stages:
        if stage.module in TRAINERS and not stage.is_done(log):
            lines += [f"cost of the stage {stage.name} on {counted(gpus, 'GPU')}:", *_cost(stage, gpus)]
    return "\n".join(lines)


def _cost(stage: Stage, gpus: int) -> list[str]:
    """The memory plan of a training, and an estimate of its time, by phases; why there is none, where there is none."""
    files, overrides = config_arguments(stage)
    try:
        workloads = workloads_of([Path(file) for file in files], overrides, gpus)
    except UserError as error:
        return [f"  {line}" for line in str(error).splitlines()]
    machines = Machines()
    texts = [text for load in workloads for text in (cost_report(load, machines, [gpus]), load.plan().text)]
    return [f"  {line}" for text in [*texts, assumptions(machines.network_gbit)] for line in text.splitlines()]


# ------------------------------------------------------------------------------------------------ results
def _collect(run: Path, log: StageLog) -> dict[str, Any]:
    """The numbers of all evaluations, by result; what was forced; and the seconds of each stage."""
    results = results_of(run)
    numbers = {name: scalars_of(result["metrics"]) for name, result in results.items()}
    forced = {name: result["forced"] for name, result in results.items() if "forced" in result}
    return {"results": numbers, **({"forced": forced} if forced else {}), "seconds": log.seconds()}


def _table(results: dict[str, Any]) -> str:
    """The numbers for people, one line per result."""
    rows = []
    for name, numbers in results["results"].items():
        facts = {"forced": results["forced"][name]} if name in results.get("forced", {}) else {}
        rows.append((name, numbers_text(numbers, facts, digits=4)))
    rows.append(("seconds, all stages", f"{sum(results['seconds'].values()):.0f}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}s}  {text}" for name, text in rows)
