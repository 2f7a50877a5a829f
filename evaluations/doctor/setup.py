"""Symptoms of how a run was started."""

from __future__ import annotations

import fcntl
import math

from omegaconf import OmegaConf

from evaluations.doctor.evidence import ASKED, Check, RunEvidence, Severity


# ---------------------------------------------------------------------------------------------- the circumstances
def _mismatch(key: str) -> Check:
    def check(run: RunEvidence) -> Severity:
        """A factor of 1.5 from every recipe of this architecture: less is a rounding of a scaling rule."""
        own, theirs = run.get(key), [(OmegaConf.select(tree, key), name) for name, tree in run.recipes]
        if own is None or not theirs or any(value is None for value, _ in theirs):
            return None
        factor = min(max(own, value) / max(min(own, value), 1e-30) for value, _ in theirs)
        return (factor - 1) / 0.5, f"{key}={own:g}; {', '.join(f'{name} has {value:g}' for value, name in theirs)}"

    return check


def ranks(run: RunEvidence) -> Severity:
    """Starts with different numbers of processes, processes that never met, GPUs that nobody uses."""
    sizes, text = [s["processes"] for s in run.starts], ""
    for start in run.starts[-1:]:
        given = start["environment"]
        asked = {name: int(given[name]) for name in ASKED if given.get(name, "").isdigit()}
        tasks, local = int(given.get("SLURM_NTASKS", 1)), int(given.get("LOCAL_WORLD_SIZE", start["processes"]))
        name = next(iter(asked), "")
        if len(set(sizes)) > 1:
            text = "processes: sums are rounded differently, dropout masks change"
            text = f"started with {', '.join(map(str, sizes))} {text}"
        elif tasks > 1 and start["processes"] == 1:
            text = f"SLURM started {tasks} tasks, but this run is a single process: each task trained by itself"
        elif asked and asked[name] > local:
            text = f"{name}={asked[name]} asks for as many processes, but {local} ran on this machine"
        elif start["device"].get("visible", local) > local:
            text = f"{start['device']['visible']} GPUs are visible, {local} used"
    return (math.inf, text) if text else None


def unfinished(run: RunEvidence) -> Severity:
    """Fewer steps than asked for, and no process that holds the folder's lock."""
    steps, lock = run.get("loop.steps", 0), run.dir / ".lock"
    if run.step >= steps:
        return None
    if lock.is_file():
        with lock.open() as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return None  # it is running
    return math.inf, f"ended at step {run.step} of {steps}; {len(run.folders)} checkpoints"
