"""Finds out what is wrong with a run from the files that it left behind, and gives evidence and a remedy.

    python -m evaluations.doctor runs/quickstart/tokenizer
    python -m evaluations.doctor runs/VQ_SS256 --recipe configs/vq/VQ_SS256.yaml --data        (also reads the images)
    python -m evaluations.doctor --machine          (before a run: GPUs, NCCL, shared memory, threads, locks, disk)

All runs in the folder are judged; a run in phases is judged phase by phase. The exit code is 1 if anything was found.
`--all` shows every check and how far it is from being reported, or what it would need to be judged (docs/doctor.md).
Without --recipe, the learning rate and batch size are compared with those of the built-in config that has the same
`model` section. Quick starts are also compared with the curves of a healthy quick start in
configs/quickstart/reference_curves.json. With --machine, the machine is judged instead, and the disk that
the given folder (by default the current one) lies on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.cli import entry_parser, positive, run_entry
from engine.counts import counted
from engine.messages import UserError
from engine.preflight import Preflight, require
from engine.recipe_names import recipe_file
from evaluations.doctor.checks import CHECKS
from evaluations.doctor.data import Finding, data_findings
from evaluations.doctor.evidence import RunEvidence
from evaluations.doctor.machine import Reading, machine_readings
from evaluations.doctor.severity import Severity


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)

    # What is judged, and by what.
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run, or a folder of runs")
    parser.add_argument("--machine", action="store_true", help="judge this machine and its disk, not a run")
    parser.add_argument("--recipe", help="YAML file or name of the recipe that the run should follow")

    # How closely it is looked at.
    parser.add_argument(
        "--all", action="store_true", help="show every check, as a multiple of its threshold, or why it is not judged"
    )
    parser.add_argument("--data", action="store_true", help="also look at the training images")
    parser.add_argument(
        "--max-images", type=positive, default=50_000, help="number of training images to look at, evenly chosen"
    )

    args = parser.parse_args()
    if args.run is None and not args.machine:
        parser.error("name the folder of a run, or give --machine")
    return args


def examine(run: RunEvidence) -> dict[str, Severity]:
    """{name: severity} of every check that can be judged."""
    severities = {name: check.severity(run) for name, check in CHECKS.items()}
    return {name: severity for name, severity in severities.items() if severity is not None}


def findings_of(run: RunEvidence, severities: dict[str, Severity]) -> list[Finding]:
    """The severities above their thresholds, with remedies for this run."""
    return [
        Finding(name, severity.evidence, CHECKS[name].remedy(run))
        for name, severity in severities.items()
        if severity.ratio > 1
    ]


def _findings(count: int) -> str:
    return counted(count, "finding") if count else "no findings"


def print_run(run: RunEvidence, findings: list[Finding], severities: dict[str, Severity], show_all: bool) -> None:
    """One run for people; with `show_all` every check, also those that could not be judged and why."""
    recipe = f", recipe {run.recipes[0].title}" if run.recipes else ""
    stop_at = run.get("loop.stop_at")
    end = f" (loop.stop_at={stop_at})" if stop_at else ""
    print(f"{run.dir}: step {run.step} of {run.get('loop.steps')}{end}{recipe}: {_findings(len(findings))}")
    if show_all:
        for name, severity in severities.items():
            print(f"  {severity.ratio:8.2f} {name}: {severity.evidence}")
        for name, check in CHECKS.items():
            if name not in severities:
                print(f"  not judged {name}: it needs {check.needs}")
    for finding in findings:
        print(f"  {finding.name}: {finding.evidence}\n    remedy: {finding.remedy}")


def print_machine(readings: list[Reading]) -> None:
    """The readings of a machine for people, with remedies where something is wrong."""
    print(f"machine: {_findings(sum(bool(reading.remedy) for reading in readings))}")
    for reading in readings:
        print(f"  {reading.name}: {reading.evidence}")
        if reading.remedy:
            print(f"    remedy: {reading.remedy}")


def run_folders(path: Path) -> list[Path]:
    """The run folders in a folder, itself included. Raises UserError if there are none."""
    folders = sorted(record.parent for record in path.rglob("metrics.jsonl"))
    folders = [folder for folder in folders if (folder / "config.yaml").is_file()]
    if not folders:
        raise UserError(f"{path} is neither a run nor a folder of runs: there is no config.yaml by a metrics.jsonl")
    return folders


def needs(args: argparse.Namespace, preflight: Preflight) -> None:
    """Looks for the runs and the recipe; for a look at the machine, for a folder to write in."""
    if args.machine:
        preflight.output(args.run or Path(), "--machine")
        return
    with preflight.collecting():
        preflight.ready += [f"run: {folder}" for folder in run_folders(args.run)]
    if args.recipe is not None:
        with preflight.collecting():
            preflight.file(recipe_file(args.recipe), "--recipe")


def main() -> None:
    args = parse_args()
    require(args, lambda preflight: needs(args, preflight))
    if args.machine:
        readings = machine_readings(args.run or Path())
        print_machine(readings)
        raise SystemExit(1 if any(reading.remedy for reading in readings) else 0)

    num_findings = 0
    for folder in run_folders(args.run):
        run = RunEvidence(folder, recipe_file(args.recipe) if args.recipe is not None else None)
        severities = examine(run)
        findings = findings_of(run, severities)
        if args.data:
            findings += data_findings(run.config, args.max_images)
        print_run(run, findings, severities, args.all)
        num_findings += len(findings)
    raise SystemExit(1 if num_findings else 0)


if __name__ == "__main__":
    run_entry(main)
