"""The memory that the command in the header of a recipe needs: `python tests/recipe_plans.py` updates all headers.

The header of every YAML file that trains a tokenizer or a GPT on GPUs has a line with its cost:

    # Cost: 40.7 GB on each of 8 GPUs, by --plan 8. Time: neither published nor measured.

The number is that of the phase that needs most.
"""
# ruff: noqa: E402

import contextlib
import io
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # for the call as a script

from recipes import ENTRIES, kind_of, recipes

COST = re.compile(r"^# Cost: ([\d.]+) GB on each of (\d+) GPUs, by --plan \2\. .+$", re.MULTILINE)
COMMAND = re.compile(r"^# GPUS=(\d+) bash scripts/(?:train_vq|train_c2i)\.sh ((?:.*\\\n#)*.*)$", re.MULTILINE)
TIME = "Time: neither published nor measured."


@dataclass(frozen=True)
class Plan:
    """What `--plan` says of a command."""

    gigabytes: float  # per GPU, in the phase that needs most
    fits: bool  # in every phase
    report: str


def planned_recipes() -> list[Path]:
    """The YAML files whose headers have a command that trains a tokenizer or a GPT on GPUs."""
    return [path for path in recipes() if COMMAND.search(path.read_text(encoding="utf-8"))]


def command_of(path: Path) -> tuple[int, list[str]]:
    """(GPUs, arguments of the script) of the command in a header."""
    gpus, arguments = COMMAND.search(path.read_text(encoding="utf-8")).groups()
    return int(gpus), shlex.split(arguments.replace("\\\n#", " "))


def cost_of(path: Path) -> tuple[float, int]:
    """(GB per GPU, GPUs) of the line `Cost` in a header."""
    gigabytes, gpus = COST.search(path.read_text(encoding="utf-8")).groups()
    return float(gigabytes), int(gpus)


def plan_of(path: Path) -> Plan:
    """Runs the entry of a header's command with `--plan`."""
    gpus, (config, *overrides) = command_of(path)
    module = ENTRIES[kind_of(path)][0]
    arguments, sys.argv = sys.argv, ["entry", "--config", config, "--plan", str(gpus), *overrides]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
            module.main()
    finally:
        sys.argv = arguments
    report = output.getvalue()
    needs = re.findall(r"this recipe needs ([\d.]+) GB: it (fits|does not fit)", report)
    return Plan(max(float(need) for need, _ in needs), all(verdict == "fits" for _, verdict in needs), report)


def updated(path: Path) -> str:
    """A YAML file with the line of its cost as it should be, above the command."""
    text = COST.sub("", path.read_text(encoding="utf-8")).replace("\n\n#", "\n#", 1)
    gpus, _ = command_of(path)
    line = f"# Cost: {plan_of(path).gigabytes:.1f} GB on each of {gpus} GPUs, by --plan {gpus}. {TIME}\n"
    start = COMMAND.search(text).start()
    return f"{text[:start]}{line}{text[start:]}"


if __name__ == "__main__":
    os.environ.setdefault("IMGNET_ROOT", "imagenet")
    os.chdir(ROOT)
    for recipe in planned_recipes():
        recipe.write_text(updated(recipe), encoding="utf-8")
        print(recipe.relative_to(ROOT), *cost_of(recipe))
