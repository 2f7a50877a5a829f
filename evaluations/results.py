"""Result files: numbers beside the protocol that says how they were made.

Two numbers may be compared only where the facts of their protocols agree.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from engine import plugins
from engine.aliases import current_result
from engine.checkpoint.manifest import STEP_NAME, write_atomic
from engine.json_text import to_json
from engine.messages import UserError, logger
from engine.run_record import library_versions
from evaluations.metrics.registry import protocol_sections, sections_of

# Sections that may differ between two results: networks and samples are what is compared.
TRAINED_SECTIONS = ("tokenizer", "gpt")
COMPARED_SECTIONS = (*TRAINED_SECTIONS, "samples")

FORCED_MARK = " (forced)"

# Facts that may differ as well: they change the definition of no number.
IGNORED_FACTS = (
    "sampler.batch_size", "codebook_size", "num_tokens", "data", "train_data", "reference.data", "reference.file",
    "read_batch_size", "layer", "image_size",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ differences
def flat_facts(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a protocol."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= flat_facts(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed_facts(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    """{dotted key: "key: value, then value"} of every fact that differs between two protocols."""
    a, b = flat_facts(first), flat_facts(second)
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return {key: f"{key}: {a.get(key)!r}, then {b.get(key)!r}" for key in keys}


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


def changed_plugins(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The differences of the plug-ins from those of the first result."""
    first, *others = ({"plugins": result.get("plugins")} for result in results)
    return [text for other in others for text in changed_facts(first, other).values()]


# ------------------------------------------------------------------------------------------------ numbers
def scalars_of(facts: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are single numbers, as opposed to tables such as `top1_per_lr`."""
    return {name: value for name, value in facts.items() if isinstance(value, int | float)}


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


# ------------------------------------------------------------------------------------------------ files
def write_result(path: Path, metrics: dict[str, Any], protocol: dict[str, Any], **more: dict[str, Any]) -> None:
    """Writes `{metrics, protocol, libraries}` as JSON, atomically, and logs the numbers.

    A metric that is NaN or infinite is no result: it is listed as unavailable instead.

    `plugins` ({name: SHA-256}) is there too, where any are loaded.
    `more` are further sections, left out where empty: `unavailable` ({metric: why it is missing}), `timing`.
    `forced` ({metric: why it should not be trusted}) follows from the facts of the reference.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = {
        name: f"its value is not finite ({value})"
        for name, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    metrics = {name: value for name, value in metrics.items() if name not in reasons}
    more = {**more, "unavailable": {**more.get("unavailable", {}), **reasons}}

    result = {"metrics": metrics, "protocol": protocol, "libraries": library_versions(), **plugins.stamp()}
    more = {"forced": forced_metrics(metrics, protocol), **more}
    result |= {name: section for name, section in more.items() if section}
    write_atomic(path, to_json(result, indent=1))

    numbers = {name: f"{value:.5g}{forced_mark(name, result)}" for name, value in scalars_of(metrics).items()}
    logger.info("%s: %s", path, "  ".join(f"{name} {text}" for name, text in numbers.items()))
    for name, reason in reasons.items():
        logger.warning("%s: %s is unavailable: %s", path, name, reason)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes arrays as .npz, atomically: to `path`, or to the file beside a result `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez(temporary, **arrays)
    temporary.replace(path.with_suffix(".npz"))


def read_result(path: str | Path) -> dict[str, Any]:
    """A result that `write_result` wrote, with present names. Raises UserError for any other file."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if not {"metrics", "protocol"} <= result.keys():
            raise ValueError("it has no metrics and protocol")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a result of an evaluation: {error}") from error
    return current_result(result)
