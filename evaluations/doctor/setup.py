"""Symptoms of how a run was started."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import OmegaConf

from engine.folder_lock import is_locked
from engine.installation import REQUESTED_PROCESSES
from evaluations.doctor.evidence import RunEvidence
from evaluations.doctor.severity import Severity

MAX_RECIPES = 3  # that are named


# ------------------------------------------------------------------------------------------------ the recipe
def differs_from_recipe(key: str) -> Callable[[RunEvidence], Severity | None]:
    """Makes the check that compares the number under a config key with the recipes."""

    def check(run: RunEvidence) -> Severity | None:
        """A factor of 1.5 from every recipe of this architecture.

        Less is the rounding of a scaling rule.
        """
        value = run.get(key)
        of_recipes = {recipe.title: OmegaConf.select(recipe.config, key) for recipe in run.recipes}
        if value is None or not of_recipes or None in of_recipes.values():
            return None

        factor = min(max(value, other) / max(min(value, other), 1e-30) for other in of_recipes.values())
        named = [f"{title} has {other:g}" for title, other in list(of_recipes.items())[:MAX_RECIPES]]
        return Severity((factor - 1) / 0.5, f"{key}={value:g}; {', '.join(named)}")

    return check


# ------------------------------------------------------------------------------------------------ processes
def ranks(run: RunEvidence) -> Severity | None:
    """Starts with different numbers of processes, processes that never met, GPUs that nobody uses."""
    if not run.starts:
        return None
    sizes = [start["processes"] for start in run.starts]
    if len(set(sizes)) > 1:
        counts = ", ".join(map(str, sizes))
        evidence = f"started with {counts} processes: sums are rounded differently, dropout masks change"
    else:
        evidence = _fault_of_start(run.starts[-1])
    return Severity(math.inf, evidence) if evidence else None


def _fault_of_start(start: Mapping[str, Any]) -> str:
    """Says what is wrong with the processes of one start; empty if nothing is."""
    environment = start["environment"]
    processes = start["processes"]
    slurm_tasks = int(environment.get("SLURM_NTASKS", 1))
    if slurm_tasks > 1 and processes == 1:
        return f"SLURM started {slurm_tasks} tasks, but this run is a single process: each task trained by itself"

    local = int(environment.get("LOCAL_WORLD_SIZE", processes))
    requested = [name for name in REQUESTED_PROCESSES if environment.get(name, "").isdigit()]
    if requested and int(environment[requested[0]]) > local:
        name = requested[0]
        return f"{name}={environment[name]} asks for as many processes, but {local} ran on this machine"

    visible = start["device"].get("visible", local)
    if visible > local:
        return f"{visible} GPUs are visible, {local} used"
    return ""


# ------------------------------------------------------------------------------------------------ the end
def unfinished(run: RunEvidence) -> Severity | None:
    """Fewer steps than asked for, and no process that holds the folder's lock."""
    steps = run.get("loop.stop_at") or run.get("loop.steps", 0)
    if run.step >= steps or is_locked(run.dir):
        return None
    return Severity(math.inf, f"ended at step {run.step} of {steps}; {len(run.checkpoints)} checkpoints")
