"""Makes configs/quickstart/reference_curves.json from finished, healthy quick starts, to show what is normal.

    bash scripts/quickstart.sh && bash scripts/quickstart.sh --system wetok
    python tests/reference_curves.py runs/quickstart runs/quickstart-wetok

The file has one entry per recipe, or per phase of a recipe in phases: the seed, the number of steps, and the losses at
the steps `at`. Entries of recipes that no given folder is a run of stay as they are.
"""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for the call as a script

from evaluations.doctor.evidence import CURVES, RunEvidence, reference_curves
from tokenizer.losses.terms import PICTURE_WEIGHTS

HOW = "python tests/reference_curves.py, see there; torch 2.14, one CPU process; losses of training at the steps `at`"


def curve_of(run: RunEvidence) -> dict:
    """The entry of a run."""
    names = [name for name in (*PICTURE_WEIGHTS, "loss") if run.series(name)]
    names = [name for name in names if name != "loss"] or names  # a sum of weighted terms says less than the terms
    metrics = {name: [float(f"{value:.4g}") for value in run.series(name)] for name in names}
    at = [int(r["step"]) for r in run.train]
    return {"seed": run.get("loop.seed"), "steps": run.get("loop.steps"), "at": at, "metrics": metrics}


def text_of(curves: dict) -> str:
    """JSON with one line for each list."""
    entries = [f' "made by": {json.dumps(HOW)}']
    for name, curve in sorted(curves.items()):
        lists = ",\n".join(f"   {json.dumps(key)}: {json.dumps(values)}" for key, values in curve["metrics"].items())
        facts = f'"seed": {curve["seed"]}, "steps": {curve["steps"]},\n  "at": {json.dumps(curve["at"])}'
        entries.append(f' {json.dumps(name)}: {{\n  {facts},\n  "metrics": {{\n{lists}\n  }}\n }}')
    return "{\n" + ",\n".join(entries) + "\n}\n"


def main(folders: list[str]) -> None:
    curves = reference_curves()
    for folder in folders:
        for path in sorted(Path(folder).rglob("metrics.jsonl")):
            run = RunEvidence(path.parent)
            for name in {recipe.title for recipe in run.recipes if recipe.name.startswith("quickstart/")}:
                curves[name] = curve_of(run)
                print(f"{name}: {path.parent}")
    CURVES.write_text(text_of(curves), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
