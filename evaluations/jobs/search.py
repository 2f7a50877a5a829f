"""The evaluation behind `evaluations.search_cfg`: the guidance scale with the smallest distance."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from autoregressive.cli import gpt_from, set_sampling, settings_of
from autoregressive.loading import classes_of
from engine.aliases import current_result
from engine.atomic_file import write_atomic
from engine.facts import without_facts
from engine.json_text import as_read_back, to_json
from engine.messages import UserError, logger
from engine.outputs import changed_settings, refuse
from engine.world import World
from evaluations.cli import (
    extractor_from,
    extractor_name,
    numbers_from,
    open_reference,
    output_path,
    reference_of_generated,
)
from evaluations.image_sets import numbered_ids
from evaluations.metrics.extractor import Extractor
from evaluations.preset_flags import preset_section
from evaluations.protocols.accumulators import Measurement, measure
from evaluations.protocols.generation_accumulators import GenerationDistances
from evaluations.protocols.preset import Preset
from evaluations.protocols.reference import Reference
from evaluations.result_intervals import SECTION, interval_section, with_errors
from evaluations.results import MOVABLE_FACTS, forced_metrics, numbers_text, read_result, write_result
from evaluations.sample_stream import SampleStream
from tokenizer.cli import images_from, tokenizer_from

PUBLISHED_STARTS = {  # schedule -> published size -> scale at which the released search starts; None: other sizes
    "step": {"b": 2.5, "l": 1.75, None: 1.25},
    "constant": {"b": 2.0, None: 1.75},
    "linear": {None: 2.0},
}
PARTIAL_SUFFIX = ".partial.json"  # of the file of a search that is not finished
OTHER_STARTS = {None: 2.0}  # of schedules without a released search

# Groups of numbers at every scale, by default: the error of what is searched. The rest is for the best scale alone.
SEARCH_NUMBERS = ("frechet",)

# Facts of a protocol that may differ when a search goes on: the scale is what moves, and folders may have moved.
FREE_FACTS = ("sampler.guidance_scale", *MOVABLE_FACTS)

Measure = Callable[[float], float]  # guidance scale -> distance


# ------------------------------------------------------------------------------------------------ where to look
def zero_order_search(measure_at: Measure, start: float, step: float = 0.25, max_scale: float = math.inf) -> float:
    """The scale in [1, max_scale] whose distance is the smallest among its neighbors at distance `step`.

    It walks from `start`. This is GigaTok's search: it looks up before it looks down.
    """
    tried: dict[float, float] = {}
    scale: float | None = start
    while scale is not None:
        tried[scale] = measure_at(scale)
        best = min(tried, key=tried.__getitem__)
        neighbors = [round(best + step, 6), round(best - step, 6)]
        scale = next((s for s in neighbors if 1 <= s <= max_scale and s not in tried), None)
    return best


def published_start(size: str | None, schedule: str, tokenizer_path: str = "") -> float:
    """Where the released search starts for a generator of a published size.

    It knows the XXL tokenizer by its name.
    """
    if schedule == "constant" and size == "b" and "XXL" in tokenizer_path:
        return 1.75
    starts = PUBLISHED_STARTS.get(schedule, OTHER_STARTS)
    return starts.get(size, starts[None])


def parse_scales(text: str) -> list[float]:
    """`"1,1.5"` -> [1.0, 1.5]. Raises UserError for anything that is no list of scales."""
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--scales {text!r} must be numbers separated by commas, such as 1,1.5,2") from None
    outside = [scale for scale in scales if not 1 <= scale < math.inf]
    if outside:
        raise UserError(f"--scales has {outside[0]:g}; a guidance scale is 1 (off) or more")
    return scales


@dataclass(frozen=True)
class SearchPlan:
    """Which guidance scales are measured: those of a list, or those on the way of a zero-order search."""

    start: float | None  # None: not yet known, see `published_start`
    step: float = 0.25
    coarse_step: float | None = None  # search with this step first, then from there with `step`
    scales: str | None = None  # a list such as "1,1.5,2", instead of a search
    max_scale: float = math.inf

    def __post_init__(self) -> None:
        """Raises UserError for a plan that cannot be followed."""
        for flag, step in (("--step", self.step), ("--coarse-step", self.coarse_step)):
            if step is not None and not 0 < step < math.inf:
                raise UserError(f"{flag} {step:g} must be above 0")
        if self.scales is not None:
            parse_scales(self.scales)
        if self.start is not None and not 1 <= self.start <= self.max_scale:
            raise UserError(
                f"the search starts at scale {self.start:g}, outside 1..--max-scale {self.max_scale:g}; see --cfg-scale"
            )

    def settings(self) -> dict[str, Any]:
        """What is written beside the result, by the names of the flags."""
        settings = asdict(self)
        start = settings.pop("start")
        max_scale = settings.pop("max_scale")
        return {"cfg_scale": start, **settings, "max_scale": f"{max_scale:g}"}

    def run(self, measure_at: Measure) -> float:
        """The best scale."""
        if self.scales is not None:
            return min(parse_scales(self.scales), key=measure_at)
        start = self.start
        if self.coarse_step is not None:
            start = zero_order_search(measure_at, start, self.coarse_step, self.max_scale)
        return zero_order_search(measure_at, start, self.step, self.max_scale)


# ------------------------------------------------------------------------------------------------ what was measured
class Curve:
    """The metrics of the scales measured so far, in a file with the settings that they belong to."""

    def __init__(self, path: Path, settings: Mapping[str, Any], world: World) -> None:
        """Reads the file where there is one. Raises UserError where it belongs to other settings."""
        self.path = path
        self.world = world
        self.settings = as_read_back(settings)
        self.rows: dict[float, dict[str, float]] = {}  # scale -> metrics, with their errors
        self.sections: dict[float, dict[str, Any]] = {}  # scale -> what the result says about them beside that
        self.missing: dict[str, str] = {}  # metric -> why it is unavailable
        if not path.is_file():
            return

        try:
            stored = current_result(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); remove it") from error
        result = path.with_name(path.name.replace(PARTIAL_SUFFIX, ".json"))
        require_settings(result, stored["settings"], self.settings, "a search that was begun")
        self.missing = stored.get("unavailable", {})
        for row in stored["rows"]:
            scale = row.pop("guidance_scale")
            self.rows[scale] = row.pop("metrics")
            self.sections[scale] = row

    def add(self, scale: float, measurement: Measurement) -> None:
        """Keeps what was measured at a scale."""
        self.rows[scale] = with_errors(measurement.metrics, measurement.errors)
        intervals = interval_section(measurement.errors, numbered_ids(self.settings.get("num_images", 0)))
        sections = {SECTION: intervals, "definitions": measurement.definitions}
        self.sections[scale] = {name: section for name, section in sections.items() if section}
        self.missing |= measurement.unavailable
        if self.world.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = {"settings": self.settings, "rows": self.table(), "unavailable": self.missing}
            write_atomic(self.path, to_json(content, indent=1))

    def table(self) -> list[dict[str, Any]]:
        """The rows by scale, for files."""
        return [
            {"guidance_scale": scale, "metrics": self.rows[scale], **self.sections[scale]}
            for scale in sorted(self.rows)
        ]


def require_settings(path: Path, stored: Mapping[str, Any], settings: Mapping[str, Any], what: str) -> None:
    """Raises UserError where the `stored` settings of the file `path`, which holds `what`, are not `settings`."""
    changed = changed_settings(stored, settings)
    if changed:
        raise refuse(path, "--output", f"holds {what} with other settings ({changed})")


# ------------------------------------------------------------------------------------------------ the search
@dataclass
class SearchJob:
    """A search that is opened and checked, and may have begun in an earlier process."""

    output: Path
    plan: SearchPlan
    stream: SampleStream
    extractor: Extractor
    reference: Reference
    emulate_fp16: bool
    numbers: tuple[str, ...]  # groups of evaluations.protocols.feature_numbers, at every scale
    held_out: Tensor | None  # features
    curve: Curve
    preset: Preset | None = None  # which --protocol asked for

    @classmethod
    def from_args(cls, args: argparse.Namespace, world: World) -> SearchJob:
        """Opens and checks everything that the flags name, before anything is sampled.

        Raises UserError for what does not fit.
        """
        output = output_path(args, "search")
        require_search(args)
        plan = SearchPlan(args.cfg_scale, args.step, args.coarse_step, args.scales, args.max_scale)

        # The networks, which know the published start of the search.
        extractor = extractor_from(args, world)
        tokenizer = tokenizer_from(args, world.device)
        generator = gpt_from(args, tokenizer, world.device)
        if plan.start is None:
            start = published_start(generator.published_size, args.cfg_schedule, f"{args.vq_ckpt} {args.tok_config}")
            plan = replace(plan, start=start)
        settings = settings_of(argparse.Namespace(**{**vars(args), "cfg_scale": plan.start}))
        set_sampling(args, generator, settings, args.per_proc_batch_size, world)
        stream = SampleStream.from_args(args, generator, tokenizer, settings, world)

        # What was measured before, with the same settings.
        data = images_from(args, tokenizer)
        classes = classes_of(generator)
        opened = open_reference(args, "generation", len(stream.labels), data, stream.image_size, extractor, classes)
        facts = without_facts(stream.protocol(opened.facts), FREE_FACTS)
        numbers = numbers_from(args)
        facts["fp16_emulation"] = args.fp16_emulation
        if numbers != SEARCH_NUMBERS:  # searches of older programs do not say it
            facts["numbers"] = sorted(numbers)
        if args.held_out is not None:
            facts["held_out"] = args.held_out
        curve = Curve(output.with_suffix(PARTIAL_SUFFIX), facts, world)

        # The reference comes last: its statistics may take long.
        reference, held_out = reference_of_generated(args, opened, stream.image_size, extractor, output.parent, world)
        return cls(
            output=output,
            plan=plan,
            stream=stream,
            extractor=extractor,
            reference=reference,
            emulate_fp16=args.fp16_emulation,
            numbers=numbers,
            held_out=held_out,
            curve=curve,
            preset=args.preset,
        )

    def settings(self) -> dict[str, Any]:
        """All that a finished search must have been made with to be this one."""
        return {**self.curve.settings, "search": self.plan.settings()}

    def is_finished(self) -> bool:
        """Whether the result is there already: a pipeline may be killed before it notes the end of its search.

        Raises UserError where the result is that of another search.
        """
        if not self.output.is_file():
            return False
        stored = read_result(self.output).get("settings", {})
        require_settings(self.output, stored, self.settings(), "a finished search")
        return True

    def measure_at(self, scale: float) -> float:
        """The distance at a guidance scale, measured unless it is known."""
        if scale not in self.curve.rows:
            self.curve.add(scale, self.metrics_at(scale))
        metrics = self.curve.rows[scale]
        forced = {"forced": forced_metrics(metrics, {"reference": self.reference.facts})}
        logger.info("guidance scale %g: %s", scale, numbers_text(metrics, forced, digits=4))
        return next(iter(metrics.values()))  # the distance comes first

    def metrics_at(self, scale: float) -> Measurement:
        """All metrics of the samples at a guidance scale."""
        stream = self.stream.at(scale)
        world = stream.world
        settings = (self.emulate_fp16, world.device, self.numbers, self.held_out)
        distances = GenerationDistances(self.extractor, self.reference, len(stream.labels), *settings)
        return measure(stream.batches(f"guidance {scale:g}"), [distances], world)

    def run(self, world: World) -> None:
        """Searches, and writes the result; a finished search is left as it is."""
        if self.is_finished():
            if world.is_main:
                self.curve.path.unlink(missing_ok=True)
                logger.info("%s holds this search, finished before", self.output)
            return
        world.barrier()  # no rank begins before all have looked for a result

        best = self.plan.run(self.measure_at)
        if world.is_main:
            protocol = self.stream.at(best).protocol(self.reference.facts)
            write_result(
                self.output,
                {"best_guidance_scale": best, **self.curve.rows[best]},
                protocol | preset_section(self.preset, protocol, self.extractor),
                curve=self.curve.table(),
                unavailable=self.curve.missing,
                **self.curve.sections[best],
                settings=self.settings(),
            )
            self.curve.path.unlink()


def require_search(args: argparse.Namespace) -> None:
    """Raises UserError for flags that leave a search nothing to compare."""
    if isinstance(args.cfg_scale, tuple):
        raise UserError("a search moves one scale, the same for all indices of a token; give one --cfg-scale")
    if extractor_name(args) == "none":
        raise UserError("a search needs a distance: --extractor none cannot be used")
