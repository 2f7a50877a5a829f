"""The whole quick start against that of an earlier commit: seconds of each stage, and every number that it gives.

The earlier code is checked out as a git worktree in a temporary folder. Both are run in turns, with the packages of
this environment and equal settings.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from engine.facts import flat_facts
from engine.installation import CODE
from engine.messages import UserError
from evaluations.benchmarks.cases import OURS, Measurable, Row, Target, compared
from evaluations.benchmarks.limits import Limits

EARLIER = "d22b545"  # before this benchmark was there
REPETITIONS = 2
REPORT = ("psnr", "codebook_usage", "frechet_lite0.reconstruction", "frechet_lite0.generated", "label_agreement")


class Journey:
    """The quick start in two trees; see the module docstring."""

    name = f"whole quick start, against commit {EARLIER}"

    def measure(self, repetitions: int, limits: Limits, device: torch.device) -> Row:
        """The row of the whole, with the medians of each stage and both sets of results as facts.

        Raises UserError outside of a git checkout, or where a quick start fails.
        """
        with earlier_tree() as tree, tempfile.TemporaryDirectory() as runs:
            results: dict[str, list[dict[str, Any]]] = {OURS: [], EARLIER: []}
            for number in range(REPETITIONS):
                for name, code in ((OURS, CODE), (EARLIER, tree)):
                    results[name].append(run_quickstart(code, Path(runs) / f"{name}-{number}"))

        # Seconds of all stages but the report, whose content has grown.
        stages = {name: _median_stages([result["seconds"] for result in runs]) for name, runs in results.items()}
        seconds = {name: sum(values.values()) for name, values in stages.items()}
        totals = [sum(result["seconds"].values()) for runs in results.values() for result in runs]
        facts = {f"seconds of {stage}": f"{stages[OURS][stage]:.1f} ({EARLIER}: {old:.1f})"
                 for stage, old in stages[EARLIER].items() if stage in stages[OURS]}  # fmt: skip
        return {
            "name": self.name,
            "seconds": seconds,
            "spread": (max(totals) - min(totals)) / statistics.median(totals),
            "against": EARLIER,
            "time": compared(Target("at most", 0.85), seconds[OURS], seconds[EARLIER]),
            "facts": facts | _numbers(results[OURS][0], results[EARLIER][0]),
            "where_missed": "on a CPU most of the time is forward and backward of small networks",
            "results": {name: runs[0] for name, runs in results.items()},
        }


@contextmanager
def earlier_tree() -> Iterator[Path]:
    """The code of the earlier commit, in a folder that is there for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / EARLIER
        git = ["git", "-C", str(CODE), "worktree"]
        added = subprocess.run(
            [*git, "add", "--detach", str(tree), EARLIER], capture_output=True, text=True, check=False
        )
        if added.returncode != 0:
            raise UserError(f"commit {EARLIER} cannot be checked out: {added.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], capture_output=True, check=False)


def run_quickstart(code: Path, runs: Path) -> dict[str, Any]:
    """Runs the quick start of a tree into an empty folder; returns its results.json."""
    environment = {**os.environ, "PYTHONPATH": str(code), "VIRTUAL_ENV": sys.prefix, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "evaluations.quickstart", "--runs-dir", str(runs)]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"the quick start of {code} failed: {done.stderr.strip()[-500:]}")
    return json.loads((runs / "quickstart" / "results.json").read_text(encoding="utf-8"))


def _median_stages(runs: list[Mapping[str, float]]) -> dict[str, float]:
    """{stage: median of its seconds over runs}, without the report."""
    return {stage: statistics.median(run[stage] for run in runs) for stage in runs[0] if stage != "report"}


def _numbers(ours: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, str]:
    """The numbers of both, side by side."""
    new, old = flat_facts(ours), flat_facts(earlier)
    return {name: f"{new[name]:.3f} ({EARLIER}: {old[name]:.3f})" for name in REPORT if name in new and name in old}


def cases(size: str, device: torch.device) -> Iterator[Measurable]:
    """The whole quick start, in the long benchmark on a CPU."""
    if size == "long" and device.type == "cpu":
        yield Journey()
