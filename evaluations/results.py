"""Result files: numbers beside the protocol that says how they were made.

Two numbers may be compared only where the facts of their protocols agree.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from engine import plugins
from engine.aliases import current_result
from engine.atomic_file import atomic_file, write_atomic
from engine.checkpoint.manifest import STEP_NAME
from engine.facts import changed_facts
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.outputs import changed_settings, refuse
from engine.run_record import library_versions
from evaluations.metrics.intervals import Estimate
from evaluations.metrics.registry import protocol_sections, sections_of
from evaluations.result_intervals import (
    SECTION,
    half_width_in,
    interval_section,
    is_part_of_interval,
    with_errors,
)

# Sections that may differ between two results: networks and samples are what is compared.
TRAINED_SECTIONS = ("tokenizer", "gpt")
# A preset is only the name of facts, which are compared themselves.
PRESET = "preset"
COMPARED_SECTIONS = (*TRAINED_SECTIONS, "samples", PRESET)

# Where networks lay; of the same result they may have moved.
MOVABLE_FACTS = tuple(f"{network}.path" for network in TRAINED_SECTIONS)

FORCED_MARK = " (forced)"

# Facts that may differ as well: they change the definition of no number.
IGNORED_FACTS = (
    "sampler.batch_size", "codebook_size", "num_tokens", "data", "train_data", "reference.data", "reference.file",
    "read_batch_size", "layer", "image_size",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ differences
def changed_for_all(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The differences between two protocols after which no metric may be ranked."""
    elsewhere = {*COMPARED_SECTIONS, *protocol_sections()}
    return [
        text
        for key, text in changed_facts(first, second).items()
        if key.split(".")[0] not in elsewhere and key not in IGNORED_FACTS
    ]


def changed_for_some(protocols: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{section: differences from the first protocol} of the sections that only some metrics depend on."""
    changed: dict[str, list[str]] = {}
    for section in sorted(protocol_sections()):
        first, *others = ({section: protocol.get(section)} for protocol in protocols)
        differences = [
            text for other in others for key, text in changed_facts(first, other).items() if key not in IGNORED_FACTS
        ]
        if differences:
            changed[section] = differences
    return changed


def changed_definitions(results: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{metric: differences from the first result} of the settings that single metrics depend on."""
    names = dict.fromkeys(name for result in results for name in result.get("definitions", {}))
    changed: dict[str, list[str]] = {}
    for name in names:
        holders = [result for result in results if name in result["metrics"]]
        first, *others = ({name: result.get("definitions", {}).get(name)} for result in holders)
        differences = [text for other in others for text in changed_facts(first, other).values()]
        if differences:
            changed[name] = differences
    return changed


def changed_plugins(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The differences of the plug-ins from those of the first result."""
    first, *others = ({"plugins": result.get("plugins")} for result in results)
    return [text for other in others for text in changed_facts(first, other).values()]


# ------------------------------------------------------------------------------------------------ numbers
def scalars_of(facts: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are single numbers, as opposed to tables such as `top1_per_lr`, and to errors of others."""
    return {
        name: value
        for name, value in facts.items()
        if isinstance(value, int | float) and not is_part_of_interval(name, facts)
    }


def training_steps(result: Mapping[str, Any]) -> dict[str, str]:
    """{network: number of training steps} of those networks of a result that came from a checkpoint of a run.

    It is a column beside the numbers and blocks no ranking: networks are what is compared.
    """
    steps = {}
    for network in TRAINED_SECTIONS:
        path = PurePath((result["protocol"].get(network) or {}).get("path", ""))
        if STEP_NAME.fullmatch(path.name):
            phase = next((f"{part}, " for part in path.parts if part.startswith("phase_")), "")
            steps[network] = f"{phase}{int(path.name.removeprefix('step_'))}"
    return steps


def steps_title(network: str) -> str:
    """The title of a row of `training_steps`."""
    return f"training steps of the {network}"


def forced_metrics(metrics: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, str]:
    """{metric: why it should not be trusted} of the metrics that depend on a reference which was forced."""
    reasons = (protocol.get("reference") or {}).get("forced")
    if not reasons:
        return {}
    of_reference = [name for name in metrics if "reference" in sections_of(name)]
    return dict.fromkeys(of_reference, "; ".join(reasons))


def forced_mark(metric: str, result: Mapping[str, Any]) -> str:
    """What is shown behind a number of a result: empty, or that it was forced."""
    return FORCED_MARK if metric in result.get("forced", {}) else ""


def numbers_text(metrics: Mapping[str, Any], result: Mapping[str, Any], digits: int = 5) -> str:
    """The single numbers among `metrics` as one line for a log, with those marked that `result` calls forced."""
    texts = []
    for name, value in scalars_of(metrics).items():
        half_width = half_width_in(metrics, name)
        interval = "" if half_width is None else f" ± {half_width:.2g}"
        texts.append(f"{name} {value:.{digits}g}{interval}{forced_mark(name, result)}")
    return "  ".join(texts)


# ------------------------------------------------------------------------------------------------ files
def write_result(
    path: Path,
    metrics: dict[str, Any],
    protocol: dict[str, Any],
    errors: Mapping[str, Estimate] | None = None,
    ids: str = "",
    **more: dict[str, Any],
) -> None:
    """Writes `{metrics, protocol, libraries}` as JSON, atomically, and logs the numbers.

    A metric that is NaN or infinite is no result: it is listed as unavailable instead. `errors` are those of metrics,
    over images that `ids` names; they are written beside the metrics and as the section `intervals`.

    `plugins` ({name: SHA-256}) is there too, where any are loaded.
    `more` are further sections, left out where empty: `unavailable` ({metric: why it is missing}), `definitions`
    ({metric: settings that it depends on}), `timing`.
    `forced` ({metric: why it should not be trusted}) follows from the facts of the reference.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics, reasons = _finite_metrics(metrics)
    errors = {name: error for name, error in (errors or {}).items() if name in metrics and math.isfinite(error.se)}
    metrics = with_errors(metrics, errors)
    more = {**more, "unavailable": {**more.get("unavailable", {}), **reasons}}

    result = {"metrics": metrics, "protocol": protocol, "libraries": library_versions(), **plugins.stamp()}
    more = {"forced": forced_metrics(scalars_of(metrics), protocol), SECTION: interval_section(errors, ids), **more}
    result |= {name: section for name, section in more.items() if section}
    write_atomic(path, to_json(result, indent=1))

    logger.info("%s: %s", path, numbers_text(metrics, result))
    for name, reason in reasons.items():
        logger.warning("%s: %s is unavailable: %s", path, name, reason)


def claim_result(path: Path, protocol: Mapping[str, Any], flag: str = "--output") -> None:
    """Checks that a result with this protocol may be written to `path`, before anything is measured.

    A result of the same protocol will be replaced. Raises UserError where there is another one, or a file that is none.
    """
    if not path.exists():
        if path.with_suffix(".npz").exists():  # of arrays that belong to no result
            raise refuse(path, flag, f"has a file {path.stem}.npz beside it, which this command would overwrite")
        return
    try:
        stored = read_result(path)
    except UserError as error:
        raise refuse(path, flag, "holds something that is no result") from error
    changed = changed_settings(stored["protocol"], protocol, MOVABLE_FACTS)
    if changed:
        raise refuse(path, flag, f"holds a result of another protocol ({changed})")
    logger.info("%s holds a result of the same protocol: it will be replaced", path)


def claim_arrays(path: Path, settings: Mapping[str, Any], companion: Path, flag: str = "--output") -> None:
    """Checks that arrays with these settings may be written to the npz file `path`, and a picture to `companion`.

    A file of the same settings (its entry `settings`) will be replaced. Raises UserError for any other one.
    """
    if not path.exists():
        if companion.exists():
            raise refuse(path, flag, f"has a file {companion.name} beside it, which this command would overwrite")
        return
    try:
        with np.load(path, allow_pickle=False) as stored:
            stored_settings = json.loads(str(stored["settings"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise refuse(path, flag, "does not say with which settings it was made") from error
    changed = changed_settings(stored_settings, settings)
    if changed:
        raise refuse(path, flag, f"was made with other settings ({changed})")
    logger.info("%s was made with the same settings: it will be replaced", path)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes arrays as .npz, atomically: to `path`, or to the file beside a result `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path.with_suffix(".npz")) as temporary:
        np.savez(temporary, **arrays)


def _finite_metrics(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics that are numbers, and {metric: reason} for those that are NaN or infinite."""
    reasons = {
        name: f"its value is not finite ({value})"
        for name, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    return {name: value for name, value in metrics.items() if name not in reasons}, reasons


def read_result(path: str | Path) -> dict[str, Any]:
    """A result that `write_result` wrote, with present names. Raises UserError for any other file.

    A metric that is NaN or infinite, as older versions wrote it, is listed as unavailable here too.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if not {"metrics", "protocol"} <= result.keys():
            raise ValueError("it has no metrics and protocol")
        if not all(isinstance(result[section], dict) for section in ("metrics", "protocol")):
            raise ValueError("metrics and protocol must be sections")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a result of an evaluation: {error}") from error
    result["metrics"], reasons = _finite_metrics(result["metrics"])
    if reasons:
        result["unavailable"] = {**result.get("unavailable", {}), **reasons}
    return current_result(result)
