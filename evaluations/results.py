"""What stands beside every number: how it was made. Two numbers may be compared only where these facts agree."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.manifest import write_atomic
from engine.messages import UserError, logger
from engine.run_record import library_versions

# What may differ between two numbers that are compared: the networks, and facts that change no definition of a number.
COMPARED = ("tokenizer", "gpt", "samples")


INCIDENTAL = (
    "sampler.batch_size", "codebook_size", "num_tokens", "data", "train_data", "reference.data", "reference.file",
    "read_batch_size", "layer", "image_size",
)  # fmt: skip


# Facts that only some metrics depend on: where they differ, the metrics whose names begin so are not ranked.
OF_METRICS = {
    "reference": ("rfid", "gfid", "sfid", "fid", "frechet", "inception_score", "precision", "recall"),
    "lpips_weights": ("lpips",),
    "classifier": ("label_agreement",),
    "training_codes": ("memorised",),
}


def flat_facts(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a protocol."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            found |= flat_facts(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def changed_facts(one: Mapping[str, Any], other: Mapping[str, Any], networks: bool = True) -> list[str]:
    """`key: value, then value` of every fact that differs; without `networks` only facts that must agree for a
    comparison.
    """
    a, b = flat_facts(one), flat_facts(other)
    keys = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    if not networks:
        keys = [k for k in keys if k.split(".")[0] not in (*COMPARED, *OF_METRICS) and k not in INCIDENTAL]
    return [f"{k}: {a.get(k)!r}, then {b.get(k)!r}" for k in keys]


def unranked(protocols: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{beginning of a metric's name: differences} of facts that only some metrics depend on."""
    found: dict[str, list[str]] = {}
    for section, metrics in OF_METRICS.items():
        parts = [{section: protocol.get(section)} for protocol in protocols]
        changed = [fact for part in parts[1:] for fact in changed_facts(parts[0], part)]
        changed = [fact for fact in changed if fact.split(":")[0] not in INCIDENTAL]
        found |= {metric: changed for metric in metrics if changed}
    return found


def write_result(path: Path, metrics: dict[str, Any], protocol: dict[str, Any], **more: dict[str, Any]) -> None:
    """Writes `{metrics, protocol, libraries}` as JSON, in one piece: a result file is either complete or not there. The
    log says the numbers.

    `more` are further sections, left out where empty: `unavailable` (metrics that are missing, and why), `timing`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"metrics": metrics, "protocol": protocol, "libraries": library_versions()}
    write_atomic(path, json.dumps(result | {name: part for name, part in more.items() if part}, indent=1))
    shown = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    logger.info("%s: %s", path, "  ".join(f"{name} {value:.5g}" for name, value in shown.items()))


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes arrays as .npz, in one piece: `path`, or the file beside a result `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez(temporary, **arrays)
    temporary.replace(path.with_suffix(".npz"))


def read_result(path: str | Path) -> dict[str, Any]:
    """A result that `write_result` wrote."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        if not {"metrics", "protocol"} <= result.keys():
            raise ValueError("it has no metrics and protocol")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a result of an evaluation: {error}") from error
    return result
