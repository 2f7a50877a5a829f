"""Which results belong to which tokenizer: a point of a picture is one tokenizer with all that was measured of it.

Results are joined by the fingerprint of the tokenizer's weights, which every result of this program states, wherever
its file lies: beside the training, in the folder of an AR probing, or alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from engine.checkpoint.manifest import STEP_NAME
from engine.messages import UserError
from evaluations.report.run_folder import RunFolder, config_of, runs_in
from evaluations.results import TRAINED_SECTIONS, read_result, scalars_of
from evaluations.run_layout import RunLayout

TOKENIZER, GENERATOR = TRAINED_SECTIONS
AR_PROBE_KEYS = {"gpt_configs", "probe_configs"}  # of the config of an AR probing, and of no other
LINEAR_PROBE = "linear_probe"  # the kind of a result in its protocol
ACCURACIES = ("top1", "top5")  # of a linear probe
WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".safetensors")  # endings that say nothing to a reader
AR_PROBE = RunLayout("").ar_probe.name


@dataclass(frozen=True)
class Measured:
    """One result of a tokenizer."""

    name: str  # `folder/result`, `folder/ar_probe/result` for one of an AR probing, or the name of a file
    result: Mapping[str, Any]

    @property
    def is_of_ar_probe(self) -> bool:
        """Whether it belongs to an AR probing."""
        return AR_PROBE in self.name.split("/")

    @property
    def place(self) -> str:
        """Its name without the folder of the run, which differs between tokenizers; empty for a file."""
        return self.name.partition("/")[2]

    @property
    def quality(self) -> dict[str, float]:
        """Its single numbers; of a linear probe the accuracy alone: its loss has the name of a generator's."""
        numbers = scalars_of(self.result["metrics"])
        if self.result["protocol"].get("kind") != LINEAR_PROBE:
            return numbers
        return {name: value for name, value in numbers.items() if name in ACCURACIES}


@dataclass
class Point:
    """One tokenizer: its results, and where its weights may lie."""

    series: str  # the line that it belongs to; empty where there is one only
    facts: Mapping[str, Any]  # what results say about it: path, weights, fingerprint
    results: list[Measured]
    folders: list[Path]  # runs in which a result was found
    label: str = ""  # its name for people

    @property
    def training(self) -> PurePath:
        """The folder of its training, or where its weights lay, as its results name it."""
        path = PurePath(str(self.facts.get("path", "")))
        if not STEP_NAME.fullmatch(path.name):
            return path
        run = path.parent.parent
        return run.parent if run.name.startswith("phase_") else run

    @property
    def step(self) -> int | None:
        """The step of its checkpoint; None where it is none of a run."""
        name = PurePath(str(self.facts.get("path", ""))).name
        return int(name.removeprefix("step_")) if STEP_NAME.fullmatch(name) else None


# ------------------------------------------------------------------------------------------------ reading
def read_points(series: Mapping[str, Sequence[Path]]) -> tuple[list[Point], list[str]]:
    """(the tokenizers of all series, what was left out and why), in the order of the paths.

    `series` are {name: result files, folders of runs, or folders of such folders}. Raises UserError for a path that is
    neither, and for a tokenizer that belongs to two series.
    """
    points: dict[str, Point] = {}  # by the fingerprint of their tokenizer
    left_out: list[str] = []
    for name, paths in series.items():
        for measured, folder in _results_in(paths):
            # Which tokenizer was measured.
            facts = measured.result["protocol"].get(TOKENIZER)
            fingerprint = facts.get("fingerprint") if isinstance(facts, Mapping) else None
            if not isinstance(fingerprint, str) or not fingerprint:
                left_out.append(f"{measured.name}: its protocol does not say which tokenizer was measured")
                continue

            # Its point, which belongs to one series.
            point = points.setdefault(fingerprint, Point(name, facts, [], []))
            if point.series != name:
                raise UserError(
                    f"{measured.name} is of the tokenizer {facts.get('path')}, which is in the series {point.series!r} "
                    f"and in {name!r}; a tokenizer belongs to one of them"
                )
            point.results.append(measured)
            if folder is not None and folder not in point.folders:
                point.folders.append(folder)

    # Their names for people, which tell those of a series apart.
    for name in series:
        of_series = [point for point in points.values() if point.series == name]
        for point, label in zip(of_series, _labels(of_series), strict=True):
            point.label = label
    return list(points.values()), left_out


def _results_in(paths: Sequence[Path]) -> Iterator[tuple[Measured, Path | None]]:
    """(a result, the folder of the run that it was found in) of everything that the paths name."""
    for path in paths:
        if path.is_file():
            yield Measured(path.stem, read_result(path)), None
            continue
        if not path.is_dir():
            raise UserError(f"{path} is neither a result file nor a folder")
        runs = runs_in(path)
        if not any(run.results for run in runs):
            raise UserError(f"{path} holds no results: no evaluations/*.json, no probe, and no folder with any")
        for run in runs:
            for name, result in run.results.items():
                yield Measured(_name_of(run, name, result), result), run.path


def _name_of(run: RunFolder, name: str, result: Mapping[str, Any]) -> str:
    """A result by its folder, what it belongs to, and its own name."""
    parts = name.split("/")
    if result["protocol"].get("kind") == LINEAR_PROBE:  # whatever its folder is called
        layout = run.layout
        is_of_generator = bool(result["protocol"].get(GENERATOR))
        parts[-1] = (layout.generator_probe if is_of_generator else layout.tokenizer_probe).name
    if set(config_of(run.path)) >= AR_PROBE_KEYS and AR_PROBE not in parts:
        parts.insert(0, AR_PROBE)
    return "/".join([run.path.resolve().name, *parts])


# ------------------------------------------------------------------------------------------------ names for people
def _labels(points: Sequence[Point]) -> list[str]:
    """A short name of each tokenizer of a series, none twice: its run; where several have it, also the step of the
    checkpoint, or the folder around the run, whatever tells them apart.
    """
    names = [_name_of_training(point) for point in points]
    labels = []
    for point, name in zip(points, names, strict=True):
        alike = [other for other, its_name in zip(points, names, strict=True) if its_name == name]
        steps, folders = [other.step for other in alike], [other.training.parent.name for other in alike]
        with_step = f"{name}, step {point.step:,}" if point.step is not None and len(set(steps)) > 1 else name
        labels.append(f"{point.training.parent.name}/{with_step}" if len(set(folders)) > 1 else with_step)
    return [
        label if labels.count(label) == 1 else f"{label} ({str(point.facts['fingerprint'])[:8]})"
        for label, point in zip(labels, points, strict=True)
    ]


def _name_of_training(point: Point) -> str:
    """The folder of a training; of a part of a run, the run."""
    training = point.training
    if training.name == RunLayout("").tokenizer.name and training.parent.name:
        return training.parent.name
    return training.stem if training.suffix in WEIGHT_FILES else training.name
