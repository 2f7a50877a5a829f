"""What is measured of every checkpoint of a tokenizer's training: which stages there are, and which weights they saw.

Each checkpoint has a folder, laid out as that of a run, so that a report and the pictures of several runs read it:

    <folder>/step_00040000/evaluations/reconstruction.json
    <folder>/step_00040000/linear_probe_tokenizer/result.json
    <folder>/step_00040000/ar_probe/evaluations/{search,val_loss}.json, ar_probe/linear_probe_gpt/result.json
    <folder>/scaling/index.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.atomic_file import write_atomic
from engine.checkpoint.manifest import checkpoint_folders, json_digest, read_manifest, record_folders
from engine.json_text import to_json
from engine.messages import UserError
from engine.outputs import free_name
from engine.pipeline import Stage, module_stage
from evaluations.pipelines.stages import on_one_process, probe_stage
from evaluations.run_layout import RunLayout

RECONSTRUCTION, LINEAR_PROBE, AR_PROBE = PROBES = ("reconstruction", "linear_probe", "ar_probe")
PICTURES = "scaling"  # the last stage, and its folder
FIGURE = "gigatok_13"  # that it draws
WEIGHTS = "checkpoints.json"  # in the folder: which weights were measured under which name


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured of each checkpoint."""

    probes: tuple[str, ...]  # of `PROBES`
    reconstruction_flags: tuple[str, ...]  # of evaluations.reconstruction
    linear_probe: tuple[str, ...]  # recipes, later ones over earlier ones
    linear_probe_overrides: tuple[str, ...]  # key=value
    ar_probe: tuple[str, ...]
    ar_probe_overrides: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ checkpoints
def checkpoints_of(run: Path, steps: Sequence[int] | None) -> dict[str, Path]:
    """{name: folder} of the checkpoints of a training, or of those at `steps`, oldest first.

    Raises UserError for a folder without checkpoints, and for a step that has none.
    """
    folders = [(records, checkpoint) for records in record_folders(run) for checkpoint in checkpoint_folders(records)]
    if not folders:
        raise UserError(f"{run} has no checkpoints; name the folder of a tokenizer's training")
    chosen = {
        (checkpoint.name if records == run else f"{records.name}-{checkpoint.name}"): checkpoint
        for records, checkpoint in folders
        if steps is None or step_of(checkpoint) in steps
    }
    missing = sorted(set(steps or ()) - {step_of(checkpoint) for _, checkpoint in folders})
    if missing:
        there = ", ".join(str(step_of(checkpoint)) for _, checkpoint in folders)
        raise UserError(f"--steps: {run} has no checkpoint of step {missing[0]}; it has {there}")
    return chosen


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint by the name of its folder."""
    return int(checkpoint.name.removeprefix("step_"))


def keep_weights(folder: Path, checkpoints: Mapping[str, Path]) -> None:
    """Writes down which weights stand behind which name.

    Raises UserError where a name stood for other weights: their results would pass for those of these.
    """
    path = folder / WEIGHTS
    now = {name: json_digest(read_manifest(checkpoint) or {}) for name, checkpoint in checkpoints.items()}
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, digest in now.items():
        if before.get(name, digest) != digest:
            raise UserError(
                f"--output {folder}: {name} was measured with other weights than {checkpoints[name]} has now; "
                f"give another folder, such as --output {free_name(folder)}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json(before | now, indent=1))


# ------------------------------------------------------------------------------------------------ stages
def stages_of_checkpoint(name: str, checkpoint: Path, folder: Path, settings: ProbeSettings) -> list[Stage]:
    """The commands for one checkpoint; each can be typed by hand."""
    layout = RunLayout(folder / name)

    # The stage of each probe, built only where it is asked for.
    of_each = {
        RECONSTRUCTION: lambda: module_stage(
            RECONSTRUCTION, "evaluations.reconstruction", "--vq-ckpt", str(checkpoint),
            "--output", str(layout.result(RECONSTRUCTION)), *settings.reconstruction_flags,
        ),
        LINEAR_PROBE: lambda: probe_stage(
            LINEAR_PROBE, layout.tokenizer_probe, settings.linear_probe,
            f"network.tokenizer={checkpoint}", *settings.linear_probe_overrides,
        ),
        AR_PROBE: lambda: module_stage(
            AR_PROBE, "evaluations.ar_probe", *(part for file in settings.ar_probe for part in ("--config", file)),
            f"tokenizer={checkpoint}", f"run_dir={layout.ar_probe}", *settings.ar_probe_overrides,
        ),
    }  # fmt: skip
    return [replace(of_each[probe](), name=f"{name} {probe}") for probe in PROBES if probe in settings.probes]


def stages_of(folder: Path, checkpoints: Mapping[str, Path], settings: ProbeSettings) -> list[Stage]:
    """The commands for all checkpoints, and the pictures behind them."""
    stages = [
        stage
        for name, checkpoint in checkpoints.items()
        for stage in stages_of_checkpoint(name, checkpoint, folder, settings)
    ]
    pictures = module_stage(
        PICTURES, "evaluations.scaling", str(folder), "--figure", FIGURE, "--output", str(folder / PICTURES)
    )
    return [*stages, replace(on_one_process(pictures), always=True)]
