"""Several systems of the quick start, each trained with several seeds: their runs, and their numbers side by side.

The classifier that measures all of them is trained once.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoregressive.loading import load_gpt
from engine import plugins
from engine.pipeline import Stage, config_flags, module_stage
from engine.run_log import read_lines, read_metrics
from evaluations.pipelines.methods_record import Recorded, RunNumbers
from evaluations.pipelines.quickstart import DEFAULT_SYSTEM, RECIPES, SYSTEMS, run_name
from evaluations.results import read_result
from evaluations.run_layout import RunLayout

DATA = SYSTEMS[DEFAULT_SYSTEM].data[0]  # the images of all runs
METHODS = tuple(name for name, system in SYSTEMS.items() if DATA in system.data and name != DEFAULT_SYSTEM)
CLASSIFIER = "classifier"
CONFIDENCE = 0.95  # of a difference that is told


@dataclass(frozen=True)
class Number:
    """A number of a run, as a column of the page.

    `read` takes the collected results of a run and the folders of its parts; None where the run has no such number.
    """

    title: str
    read: Callable[[dict[str, Any], RunLayout], float | None]
    digits: int = 1
    higher_is_better: bool | None = None  # None: a cost or a size, which is not judged


# ------------------------------------------------------------------------------------------------ runs
def run_of(method: str, seed: int, runs_dir: Path) -> Path:
    """The folder of a run of the quick start; seed 0 is that of its recipes."""
    args = Namespace(system=method, data=DATA, seed=seed or None, short=False)
    return runs_dir / run_name(args)


def stages_of(methods: Sequence[str], seeds: int, runs_dir: Path, recorded: Recorded) -> list[Stage]:
    """The training of the classifier and all runs, by seed, so that an interrupted comparison has whole rows.

    A system with the tokenizer of another one comes behind that. Runs whose numbers are on record are left out,
    and the classifier, too, where none is left to measure.
    """
    classifier = runs_dir / CLASSIFIER
    config = config_flags([f"{RECIPES}/classifier"])
    stages = [module_stage(CLASSIFIER, "evaluations.classifier", *config, f"loop.run_dir={classifier}")]
    known = recorded_runs(methods, seeds, recorded)
    for seed in range(seeds):
        for method in methods:
            if (method, seed) in known:
                continue
            flags = ["--system", method, "--runs-dir", str(runs_dir), "--classifier", str(classifier)]
            flags += ["--seed", str(seed)] if seed else []
            name = run_of(method, seed, runs_dir).name
            # A pipeline itself, and hence one process whatever the environment asks for.
            stages.append(Stage(name, [sys.executable, "-m", "evaluations.quickstart", *plugins.flags(), *flags]))
    return stages if len(stages) > 1 else []


def compared_with(method: str) -> str:
    """The system beside which one is shown: that of its tokenizer, or the default one where it has its own."""
    return SYSTEMS[method].base or DEFAULT_SYSTEM


# ------------------------------------------------------------------------------------------------ numbers
def _bits(results: dict[str, Any], layout: RunLayout) -> float | None:
    return read_result(layout.result("reconstruction"))["metrics"].get("bits_per_image")


def _held_out_nats(results: dict[str, Any], layout: RunLayout) -> float | None:
    losses = [record["val_ema/loss"] for record in read_metrics(layout.generator) if "val_ema/loss" in record]
    return losses[-1] * results["num_tokens"] if losses else None


def _passes(results: dict[str, Any], layout: RunLayout) -> float | None:
    return load_gpt(layout.generator).passes_per_image


def _whole_run(results: dict[str, Any], layout: RunLayout) -> float | None:
    return sum(results["cpu_seconds"].values()) / 60


def _percent(name: str) -> Callable[[dict[str, Any], RunLayout], float | None]:
    return lambda results, layout: None if results[name] is None else 100 * results[name]


def _cpu_seconds(network: str) -> Callable[[dict[str, Any], RunLayout], float | None]:
    """Those of the stage that is named as the folder of the network is."""
    return lambda results, layout: results["cpu_seconds"].get(getattr(layout, network).name)


NUMBERS = {
    "bits": Number("bits per image", _bits, digits=0),
    "psnr": Number("PSNR, dB", lambda results, _: results["psnr"], digits=2, higher_is_better=True),
    "usage": Number("codes in use, %", _percent("codebook_usage")),
    "reconstructed": Number(
        "`frechet_lite0` reconstructed", lambda results, _: results["frechet_lite0"]["reconstruction"],
        higher_is_better=False,
    ),
    "generated": Number(
        "`frechet_lite0` generated", lambda results, _: results["frechet_lite0"]["generated"], higher_is_better=False
    ),
    "agreement": Number("show their class, %", _percent("label_agreement"), higher_is_better=True),
    "nats": Number("held-out nats per image", _held_out_nats, digits=2, higher_is_better=False),
    "passes": Number("passes per image", _passes, digits=0),
    "tokenizer": Number("CPU s, tokenizer", _cpu_seconds("tokenizer"), digits=0),
    "generator": Number("CPU s, generator", _cpu_seconds("generator"), digits=0),
    "whole": Number("CPU min, all stages", _whole_run),
}  # fmt: skip


def numbers_of(run: Path) -> RunNumbers:
    """The numbers of a finished run."""
    results, layout = json.loads((run / "results.json").read_text(encoding="utf-8")), RunLayout(run)
    numbers = {name: number.read(results, layout) for name, number in NUMBERS.items()}
    finite = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
    return RunNumbers(finite, _commit_of(layout))


def _commit_of(layout: RunLayout) -> str:
    """The commit of the last start of the generator's training, marked where files differed from it."""
    git = read_lines(layout.generator / "starts.jsonl")[-1]["git"]
    return f"{git['sha']} with changes" if git["dirty"] is True else git["sha"]


def recorded_runs(methods: Sequence[str], seeds: int, recorded: Recorded) -> list[tuple[str, int]]:
    """The runs that a comparison need not repeat, as method and seed."""
    return [(method, seed) for seed in range(seeds) for method in methods if seed in recorded.get(method, {})]


def finished_runs(methods: Sequence[str], seeds: int, runs_dir: Path, recorded: Recorded) -> Recorded:
    """The runs on record and those in the folder, which count where a run is in both."""
    runs = {method: dict(of_method) for method, of_method in recorded.items()}
    for method in methods:
        for seed in range(seeds):
            run = run_of(method, seed, runs_dir)
            if (run / "results.json").is_file():
                runs.setdefault(method, {})[seed] = numbers_of(run)
    return runs


@dataclass(frozen=True)
class Measured:
    """The finished runs of a method, by seed."""

    method: str
    runs: Mapping[int, RunNumbers]

    @classmethod
    def among(cls, recorded: Recorded, method: str, seeds: int) -> Measured:
        """Those of the seeds 0 to seeds - 1."""
        runs = recorded.get(method, {})
        return cls(method, {seed: runs[seed] for seed in range(seeds) if seed in runs})

    @property
    def values(self) -> dict[str, list[float]]:
        """{number: its value in each run}, without numbers that no run has."""
        values: dict[str, list[float]] = {}
        for run in self.runs.values():
            for name, value in run.numbers.items():
                values.setdefault(name, []).append(value)
        return values

    def text(self, name: str) -> str:
        """A number as `mean ± std` over the runs, the std with n - 1; only the value where there is one run.

        Says of how many runs it is where not all have it.
        """
        values, digits = self.values.get(name, []), NUMBERS[name].digits
        if not values:
            return "-"
        text = f"{statistics.fmean(values):.{digits}f}"
        if len(set(values)) > 1:
            text += f" ± {statistics.stdev(values):.{digits}f}"
        return text if len(values) == len(self.runs) else f"{text} ({len(values)} of {len(self.runs)} runs)"

    def verdicts(self, plain: Measured, names: Sequence[str]) -> dict[str, bool]:
        """{number: whether it is better than the plain system's}, of those that differ beyond chance.

        By Welch's t-test over the runs, at 95 %. With three runs each, only large differences are.
        """
        from scipy.stats import ttest_ind_from_stats

        verdicts = {}
        for name in names:
            ours, theirs = self.values.get(name, []), plain.values.get(name, [])
            if NUMBERS[name].higher_is_better is None or min(len(ours), len(theirs)) < 2 or ours == theirs:
                continue
            # From means and stds: of values that are all equal, as 100 % is, `ttest_ind` would warn.
            moments = [(statistics.fmean(values), statistics.stdev(values), len(values)) for values in (ours, theirs)]
            if ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue < 1 - CONFIDENCE:
                is_higher = statistics.fmean(ours) > statistics.fmean(theirs)
                verdicts[name] = is_higher == NUMBERS[name].higher_is_better
        return verdicts
