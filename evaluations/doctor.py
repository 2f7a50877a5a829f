"""Names what is wrong with a run, with evidence and a remedy, from what the run left behind.

    python -m evaluations.doctor runs/quickstart/tokenizer
    python -m evaluations.doctor runs/VQ_SS256 --recipe configs/vq/VQ_SS256.yaml --data        (also reads the images)

A folder of several runs is looked at run by run. The exit code is 1 where something was found. Without --recipe, the
shipped config with the same `model` section is the measure of learning rate and batch size; quick starts are also held
against configs/quickstart/reference_curves.json, the curves of a healthy one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engine.config import UserError, positive, run_entry
from evaluations.checks import CHECKS, Evidence
from evaluations.data_checks import Finding, data_findings


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or a folder of runs")
    parser.add_argument("--recipe", type=Path, help="YAML that the run should follow")
    parser.add_argument("--data", action="store_true", help="also look at the training images")
    parser.add_argument("--max-images", type=positive, default=50_000, help="training images to look at, evenly chosen")
    return parser.parse_args()


def examine(run: Evidence) -> list[Finding]:
    """Every check that found something: (name, evidence, remedy)."""
    found = ((name, check(run), remedy) for name, (check, remedy) in CHECKS.items())
    return [(name, text, remedy) for name, text, remedy in found if text is not None]


def main() -> None:
    args, total = parse_args(), 0
    folders = (
        [args.run]
        if (args.run / "config.yaml").is_file()
        else sorted(p.parent for p in args.run.glob("*/metrics.jsonl") if (p.parent / "config.yaml").is_file())
    )
    if not folders:
        raise UserError(f"{args.run} is neither a run nor a folder of runs: there is no config.yaml")
    for folder in folders:
        run = Evidence(folder, args.recipe)
        found = examine(run) + (data_findings(run.config, args.max_images) if args.data else [])
        recipe = f", recipe {run.recipes[0][0].name}" if run.recipes else ""
        print(f"{folder}: step {run.step} of {run.get('loop.steps')}{recipe}: {len(found) or 'no'} finding(s)")
        for name, text, remedy in found:
            print(f"  {name}: {text}\n    remedy: {remedy}")
        total += len(found)
    raise SystemExit(1 if total else 0)


if __name__ == "__main__":
    run_entry(main)
