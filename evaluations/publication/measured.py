"""The results that go onto a model card: numbers with their protocol, of the published networks and of no others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.data.classes import STAMP as CLASSES
from engine.facts import flat_facts
from engine.messages import UserError, logger
from evaluations.metrics.registry import shown, title
from evaluations.publication.networks import PublishedNetwork
from evaluations.report.run_folder import results_of
from evaluations.result_intervals import SECTION, STDERR, half_width_in, half_width_text
from evaluations.results import TRAINED_SECTIONS, forced_mark, read_result, scalars_of

PLACES = ("path", "file", "data", "train_data")  # last parts of facts that name folders and files of the publisher
# Sections of a result file that are no columns of numbers by metric.
OTHER_SECTIONS = frozenset(
    {"metrics", "protocol", "libraries", "plugins", "unavailable", "forced", "timing", "curve", "definitions", SECTION}
)


class PublishedResult(Protocol):
    """A result on a card: from a result file, or from the card that lay beside the weights."""

    name: str  # for the heading: what was measured

    def rows(self) -> list[list[str]]:
        """The table: a head, then metric, value and columns of errors."""

    def notes(self) -> list[str]:
        """What is missing, and what should not be trusted."""

    def protocol(self) -> list[str]:
        """How the numbers were made, one fact a line."""


@dataclass(frozen=True)
class MeasuredResult:
    """One result file."""

    name: str  # for the heading: what was measured
    result: Mapping[str, Any]

    def rows(self) -> list[list[str]]:
        """The table of the card: a head, then metric, value and the columns of errors that the file holds."""
        numbers = scalars_of(self.result["metrics"])
        errors = self._error_columns(numbers)
        head = ["metric", "value", *errors]
        rows = [head]
        for metric, value in numbers.items():
            if metric.endswith(STDERR) and metric.removesuffix(STDERR) in numbers:
                continue
            cells = [errors[column].get(metric, "") for column in errors]
            rows.append([title(metric), f"{shown(metric, value)}{forced_mark(metric, self.result)}", *cells])
        return rows

    def _error_columns(self, numbers: Mapping[str, float]) -> dict[str, dict[str, str]]:
        """{title of a column: {metric: text}} of everything that says how sure a number is."""
        columns: dict[str, dict[str, str]] = {}
        of_metrics = {
            name.removesuffix(STDERR): shown(name.removesuffix(STDERR), value)
            for name, value in numbers.items()
            if name.endswith(STDERR) and name.removesuffix(STDERR) in numbers
        }
        if of_metrics:
            columns["standard error"] = of_metrics
        half_widths = {name: half_width_in(self.result["metrics"], name) for name in numbers}
        intervals = {name: f"± {half_width_text(name, half)}" for name, half in half_widths.items() if half is not None}
        if intervals:
            columns["95 % interval"] = intervals
        for section, values in self.result.items():
            if section not in OTHER_SECTIONS and isinstance(values, Mapping) and values.keys() & numbers.keys():
                cells = {metric: _error_text(metric, value) for metric, value in values.items() if metric in numbers}
                columns[section.replace("_", " ")] = cells
        return columns

    def protocol(self) -> list[str]:
        """How the numbers were made, one fact a line, without places of the publisher."""
        lines = []
        for key, value in flat_facts(self.result["protocol"]).items():
            is_place = key.rpartition(".")[2] in PLACES or (isinstance(value, str) and value.startswith(("/", "~")))
            if not is_place and CLASSES not in key.split("."):
                lines.append(f"{key}: {value}")
        lines += [f"libraries.{name}: {version}" for name, version in self.result.get("libraries", {}).items()]
        return lines

    def notes(self) -> list[str]:
        """What is missing, and what should not be trusted."""
        missing = [f"{title(name)} is missing: {why}" for name, why in self.result.get("unavailable", {}).items()]
        forced = [f"{title(name)} should not be trusted: {why}" for name, why in self.result.get("forced", {}).items()]
        return missing + forced


def _error_text(metric: str, value: Any) -> str:
    """An error, or an interval, as text."""
    if isinstance(value, list | tuple):
        return " to ".join(_error_text(metric, end) for end in value)
    return shown(metric, value) if isinstance(value, int | float) else str(value)


# ------------------------------------------------------------------------------------------------ which results
def chosen_results(run: Path, files: Sequence[Path], networks: Sequence[PublishedNetwork]) -> list[PublishedResult]:
    """The results in `files`, or where none are named those in the run folder and on the cards beside the weights.

    Raises UserError for a named file that is no result, has no protocol, or was measured with other weights. Results of
    a run folder that were measured with other weights are left out, which the log says.
    """
    if files:
        chosen = [MeasuredResult(path.stem, read_result(path)) for path in files]
        for path, measured in zip(files, chosen, strict=True):
            problem = problem_of(measured.result, networks)
            if problem is not None:
                raise UserError(f"{path} {problem}")
        return chosen
    of_run = list(_results_of_run(run, networks))
    return [*of_run, *_results_of_cards(networks, {result.name for result in of_run})]


def _results_of_run(run: Path, networks: Sequence[PublishedNetwork]) -> Iterator[MeasuredResult]:
    """The results of a run folder that were measured with the published weights."""
    for name, result in results_of(run).items():
        problem = problem_of(result, networks)
        if problem is None:
            yield MeasuredResult(name, result)
        else:
            logger.info("result %s is left out: it %s", name, problem)


def _results_of_cards(networks: Sequence[PublishedNetwork], known: Collection[str]) -> Iterator[PublishedResult]:
    """The results on earlier cards of the published weights, without those whose name is `known`.

    Networks that were published together share a card.
    """
    fingerprints = {network.fingerprint for network in networks}
    for card in dict.fromkeys(network.card for network in networks if network.card is not None):
        for result in card.results(fingerprints):
            if result.name not in known:
                logger.info("result %s is taken from the card beside the weights", result.name)
                yield result


def problem_of(result: Mapping[str, Any], networks: Sequence[PublishedNetwork]) -> str | None:
    """Why a result may not stand on the card of `networks`; None where it may."""
    protocol = result["protocol"]
    measured = [protocol[section] for section in TRAINED_SECTIONS if isinstance(protocol.get(section), Mapping)]
    fingerprints = [facts.get("fingerprint") for facts in measured]
    if not protocol or not any(fingerprints):
        return "has no protocol stamp that says which weights were measured; measure again with this program"
    if not scalars_of(result["metrics"]):
        return "holds no number"

    # Of a tokenizer and a generator, the generator was measured.
    published = {network.fingerprint for network in networks}
    if fingerprints[-1] not in published:
        return f"was measured with other weights ({str(fingerprints[-1])[:16]}), not with the published ones"
    return None
