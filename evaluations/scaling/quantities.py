"""A number on an axis: a size of a tokenizer, or a metric of one of its results, with its 95 % interval.

parameters                        a size (evaluations.scaling.sizes)
rfid                              a metric of any result that belongs to no AR probing
ar_probe/gfid                     the same metric of the AR probing
GPT_XL*/search/gfid               of results whose name matches a pattern, or has it as a part
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from engine.facts import changed_facts, without_facts
from engine.messages import UserError
from evaluations.comparison import is_computed_by_plugin
from evaluations.metrics.registry import find_metric, sections_of, title
from evaluations.result_intervals import estimate_in, half_width_in
from evaluations.results import (
    changed_definitions,
    changed_for_all,
    changed_for_some,
    changed_plugins,
)
from evaluations.run_layout import RunLayout
from evaluations.scaling.readings import AR_PROBE, Measured, Point
from evaluations.scaling.sizes import SIZES, SizedTokenizer

SEARCHED = "best_guidance_scale"  # the metric of results whose guidance scale was searched for
IN_WORDS = {  # first part of a pattern -> what its results are about
    AR_PROBE: "AR probing",
    RunLayout("").tokenizer_probe.name: "of the tokenizer",
    RunLayout("").generator_probe.name: "of the generator",
}
PER_TOKEN = "nats per token"  # the unit of losses that depend on how many tokens of how many codes an image has
SCALE = "sampler.guidance_scale"  # the fact of a protocol that a search has as its outcome


@dataclass(frozen=True)
class Value:
    """A number of a point."""

    number: float
    half_width: float | None = None  # of the 95 % interval; None where no error is known
    measured: Measured | None = None  # the result that it stands in; None for a size
    is_exact: bool = False  # a size, which has no error
    codes: str = ""  # of a loss per token: which tokens, without which it says nothing

    @property
    def low(self) -> float:
        """The lower end of the interval, or the number."""
        return self.number - (self.half_width or 0.0)

    @property
    def high(self) -> float:
        """The upper end of the interval, or the number."""
        return self.number + (self.half_width or 0.0)


@dataclass(frozen=True)
class Quantity:
    """What an axis shows."""

    text: str  # as it is typed
    metric: str = ""  # empty for a size
    pattern: str = ""  # that names of results must match; empty: any

    @property
    def is_size(self) -> bool:
        """Whether it is a size of the tokenizer, and no metric."""
        return not self.metric

    @property
    def title(self) -> str:
        """The name of the axis, with the unit and the direction that is better."""
        if self.is_size:
            return SIZES[self.text].title
        return " ".join(filter(None, [self.short_title, self.direction]))

    @property
    def direction(self) -> str:
        """Which direction is better; empty where none is."""
        known = find_metric(self.metric)
        return f"({known.better} is better)" if known is not None and known.better is not None else ""

    @property
    def short_title(self) -> str:
        """The name without the direction."""
        if self.is_size:
            return SIZES[self.text].title
        return f"{title(self.metric)}{f', {self._where}' if self.pattern else ''}"

    @property
    def is_percent(self) -> bool:
        """Whether it is a fraction that people read in percent."""
        known = find_metric(self.metric)
        return known is not None and known.percent

    @property
    def _where(self) -> str:
        """Where a metric comes from, in words."""
        return IN_WORDS.get(self.pattern.split("/")[0], self.pattern)

    def read(self, point: Point, sized: SizedTokenizer) -> Value:
        """The number of a point.

        Raises UserError, with the reason, where it has none, or several results have one.
        """
        if self.is_size:
            return Value(SIZES[self.text].read(sized), is_exact=True)
        measured = self._result_of(point)
        return Value(
            number=measured.result["metrics"][self.metric],
            half_width=interval_of(measured.result, self.metric),
            measured=measured,
            codes=_codes_of(measured, sized),
        )

    def _result_of(self, point: Point) -> Measured:
        """The result of a point that has the metric. Raises UserError where none has it, or several."""
        having = [measured for measured in point.results if self._matches(measured)]
        holders = [measured for measured in having if self.metric in measured.quality]
        if len(holders) > 1 and not self._are_same(holders):
            names = " and ".join(f"{measured.name}/{self.metric}" for measured in holders)
            raise UserError(f"{self.metric} stands in several results ({names}): say which one")
        if not holders:
            raise UserError(self._why_missing(having))
        return holders[0]

    def _are_same(self, holders: list[Measured]) -> bool:
        """Whether several results are of one measurement, made twice."""
        first, *others = holders
        number = first.result["metrics"][self.metric]
        return all(
            other.result["metrics"][self.metric] == number and not why_not_comparable(self.metric, first, other)
            for other in others
        )

    def number_of(self, point: Point, sized: SizedTokenizer) -> float | None:
        """The number of a point alone; None where it has none, or several."""
        try:
            return self.read(point, sized).number
        except UserError:
            return None

    def is_in(self, point: Point) -> bool:
        """Whether exactly one result of a point has the metric. Its weights are not looked at."""
        try:
            self._result_of(point)
        except UserError:
            return False
        return True

    def _matches(self, measured: Measured) -> bool:
        """Whether a result is one of those that are asked for."""
        if measured.is_of_ar_probe and AR_PROBE not in self.pattern.split("/"):
            return False
        forms = (self.pattern, f"{self.pattern}/*", f"*/{self.pattern}", f"*/{self.pattern}/*")
        return not self.pattern or any(fnmatchcase(measured.name, form) for form in forms)

    def _why_missing(self, having: list[Measured]) -> str:
        """Why no result has the metric: its own reason, where one says it."""
        for measured in having:
            reason = measured.result.get("unavailable", {}).get(self.metric)
            if reason is not None:
                return f"{self.metric} is unavailable in {measured.name}: {reason}"
        return f"no result with {self.text}"


def quantity_of(text: str) -> Quantity:
    """A quantity as it is typed. Whether any result has it is known when results are read."""
    if text in SIZES:
        return Quantity(text)
    pattern, _, metric = text.rpartition("/")
    if not metric:
        raise UserError(f"{text!r} names no metric; accepted are {', '.join(SIZES)}, a metric such as rfid, or "
                        "RESULT/METRIC such as ar_probe/gfid")  # fmt: skip
    return Quantity(text, metric, pattern)


def _codes_of(measured: Measured, sized: SizedTokenizer) -> str:
    """Which tokens a loss per token is of; empty for a result of any other kind."""
    if measured.result["protocol"].get("unit") != PER_TOKEN:
        return ""
    try:
        return sized.codes()
    except UserError:
        return "tokens that are not known"


def interval_of(result: Mapping[str, Any], metric: str) -> float | None:
    """Half of the 95 % interval of a metric: as the result says it, or from its standard error; None without one."""
    stated = half_width_in(result["metrics"], metric)
    estimate = estimate_in(result, metric)
    return stated if stated is not None or estimate is None else estimate.half_width


# ------------------------------------------------------------------------------------------------ comparing
def why_not_comparable(metric: str, first: Measured, second: Measured) -> list[str]:
    """The facts that differ between two results, of those that this metric depends on; none where it may be compared.

    The guidance scale that a search found may differ, where both were searched in the same way.
    """
    results = [first.result, second.result]
    protocols = [result["protocol"] for result in results]
    searches = []
    if all(SEARCHED in result["metrics"] for result in results):
        protocols = [without_facts(protocol, [SCALE]) for protocol in protocols]
        plans = [{"search": result.get("settings", {}).get("search", {})} for result in results]
        searches = [text for key, text in changed_facts(*plans).items() if key != "search.cfg_scale"]

    changed = {**changed_for_some(protocols), **changed_definitions(results)}
    names = [metric, *sections_of(metric)]
    if is_computed_by_plugin(metric):
        changed["plugins"] = changed_plugins(results)
        names.append("plugins")
    return [*changed_for_all(*protocols), *searches, *(text for name in names for text in changed.get(name, []))]
