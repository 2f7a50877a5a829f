"""Errors of numbers in result files: how they are written, read and shown.

Beside a metric `psnr` stand `psnr_se`, its standard error, and `psnr_low` and `psnr_high`, the ends of its 95 %
interval. The section `intervals` holds what they follow from: for every metric the form of its error and the values of
its parts, and for all of them the rule by which images are divided and the images that it divides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluations.metrics.blocks import RULE
from evaluations.metrics.intervals import CONFIDENCE, Difference, Estimate, independent_difference, paired_difference
from evaluations.metrics.registry import find_metric, shown

SECTION = "intervals"
SUFFIXES = ("_se", "_low", "_high")  # of the metrics beside one with an error
STDERR = "_stderr"  # of the standard error of a metric that is no mean over images, in other results
MANY = 10**6  # degrees of freedom where a result does not say how many


# ------------------------------------------------------------------------------------------------ writing
def informative(errors: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The errors above 0.

    Parts that are all equal say nothing of an error: 0 of 1,000 images is not 0 for certain.
    """
    return {name: error for name, error in errors.items() if error.se > 0}


def with_errors(metrics: Mapping[str, Any], errors: Mapping[str, Estimate]) -> dict[str, Any]:
    """The metrics, with its error and interval behind each that has one."""
    errors = informative(errors)
    entries: dict[str, Any] = {}
    for name, value in metrics.items():
        entries[name] = value
        if name in errors:
            error = errors[name].around(value)
            entries |= dict(zip((f"{name}{s}" for s in SUFFIXES), (error.se, error.low, error.high), strict=True))
    return entries


def interval_section(errors: Mapping[str, Estimate], ids: str) -> dict[str, Any]:
    """The section `intervals` of a result; empty where no error is known. `ids` says which images were divided."""
    parts = {
        name: {"form": error.form, "freedom": error.freedom, "values": list(error.parts)}
        for name, error in informative(errors).items()
    }
    if not parts:
        return {}
    return {"confidence": CONFIDENCE, "blocks": RULE, "ids": ids, "parts": parts}


# ------------------------------------------------------------------------------------------------ reading
def is_part_of_interval(name: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a metric is the error, or an end of the interval, of another one that is there."""
    return any(name.endswith(suffix) and name.removesuffix(suffix) in metrics for suffix in SUFFIXES)


def estimate_in(result: Mapping[str, Any], name: str) -> Estimate | None:
    """A number of a result with its error; None where the result has none, as those of earlier versions."""
    metrics = result["metrics"]
    se = metrics.get(f"{name}_se", metrics.get(f"{name}{STDERR}"))
    if not isinstance(se, int | float) or not isinstance(metrics.get(name), int | float):
        return None
    parts = result.get(SECTION, {}).get("parts", {}).get(name, {})
    return Estimate(
        value=metrics[name],
        se=se,
        freedom=parts.get("freedom", MANY),
        form=parts.get("form", "images"),
        parts=tuple(parts.get("values", ())),
    )


def difference_in(first: Mapping[str, Any], second: Mapping[str, Any], name: str) -> Difference | None:
    """How much larger a number is in a second result; None where one of them has no error.

    Paired where both were divided by the same rule over the same images, else as of independent images. The caller
    sees to it that both have the same reference.
    """
    estimates = estimate_in(first, name), estimate_in(second, name)
    if None in estimates:
        return None
    sections = first.get(SECTION, {}), second.get(SECTION, {})
    same_blocks = all(sections[0].get(key) == sections[1].get(key) for key in ("blocks", "ids"))
    same_parts = estimates[0].form == estimates[1].form and len(estimates[0].parts) == len(estimates[1].parts) > 1
    if same_blocks and same_parts:
        return paired_difference(*estimates)
    return independent_difference(*estimates)


# ------------------------------------------------------------------------------------------------ for people
def half_width_in(metrics: Mapping[str, Any], name: str) -> float | None:
    """Half of the 95 % interval of a metric, or None."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return (high - low) / 2 if isinstance(low, int | float) and isinstance(high, int | float) else None


def value_text(metrics: Mapping[str, Any], name: str) -> str:
    """A metric as people read it, with half of its 95 % interval where that is known: `21.4 ± 0.3`."""
    text = shown(name, metrics[name])
    half_width = half_width_in(metrics, name)
    return text if half_width is None else f"{text} ± {half_width_text(name, half_width)}"


def half_width_text(name: str, half_width: float) -> str:
    """Half of an interval with two digits; of a fraction in percent."""
    metric = find_metric(name)
    return f"{100 * half_width:.2g}%" if metric is not None and metric.percent else f"{half_width:.2g}"
