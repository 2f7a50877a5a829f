"""Names what is wrong with a run, with evidence and a remedy, from what the run left behind.

    python -m evaluations.doctor runs/quickstart/tokenizer
    python -m evaluations.doctor runs/VQ_SS256 --recipe configs/vq/VQ_SS256.yaml --data        (also reads the images)

All runs in the folder are looked at, those in phases phase by phase. The exit code is 1 where something was found.
`--all` shows every check and how far it is from being named (docs/doctor.md). Without --recipe, the shipped config with
the same `model` section is the measure of learning rate and batch size; quick starts are also held against
configs/quickstart/reference_curves.json, the curves of a healthy one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.cli import entry_parser, positive, run_entry
from engine.messages import UserError
from evaluations.doctor.checks import CHECKS
from evaluations.doctor.data import Finding, data_findings
from evaluations.doctor.evidence import RunEvidence


def parse_args() -> argparse.Namespace:
    parser = entry_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or a folder of runs")
    parser.add_argument("--recipe", type=Path, help="YAML that the run should follow")
    parser.add_argument("--all", action="store_true", help="every check: how many times its threshold (above 1: named)")
    parser.add_argument("--data", action="store_true", help="also look at the training images")
    parser.add_argument("--max-images", type=positive, default=50_000, help="training images to look at, evenly chosen")
    return parser.parse_args()


def readings(run: RunEvidence) -> dict[str, tuple[float, str]]:
    """What every check that can be made says: {name: (how many times its threshold, evidence)}."""
    found = {name: check(run) for name, (check, _) in CHECKS.items()}
    return {name: reading for name, reading in found.items() if reading is not None}


def named(found: dict[str, tuple[float, str]]) -> list[Finding]:
    """The readings above their thresholds: (name, evidence, remedy)."""
    return [(name, text, CHECKS[name][1]) for name, (times, text) in found.items() if times > 1]


def main() -> None:
    args, total = parse_args(), 0
    folders = sorted(p.parent for p in args.run.rglob("metrics.jsonl") if (p.parent / "config.yaml").is_file())
    if not folders:
        raise UserError(f"{args.run} is neither a run nor a folder of runs: there is no config.yaml by a metrics.jsonl")
    for folder in folders:
        run = RunEvidence(folder, args.recipe)
        read = readings(run)
        found = named(read) + (data_findings(run.config, args.max_images) if args.data else [])
        recipe = f", recipe {run.recipes[0][0]}" if run.recipes else ""
        print(f"{folder}: step {run.step} of {run.get('loop.steps')}{recipe}: {len(found) or 'no'} finding(s)")
        for name, (times, text) in read.items() if args.all else ():
            print(f"  {times:8.2f} {name}: {text}")
        for name, text, remedy in found:
            print(f"  {name}: {text}\n    remedy: {remedy}")
        total += len(found)
    raise SystemExit(1 if total else 0)


if __name__ == "__main__":
    run_entry(main)
