"""A run on Weights & Biases: its metrics, config, pictures and summary, beside those in the run folder.

The id of the run is kept in <run>/wandb_id.txt. A resumed training continues the same run, and one that was deleted and
started anew is another. `WANDB_MODE=offline` works as in any program; `wandb sync` uploads later.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from engine.atomic_file import write_atomic
from engine.config import to_yaml
from engine.installation import install_hint
from engine.messages import UserError
from engine.tracker import Record, Tracker, metrics_of, picture_kind, record_kind, run_name
from engine.validation import Section

DEFAULT_PROJECT = "visual-tokenizers"
ID_FILE = "wandb_id.txt"
STEP = "step"  # the metric over which wandb draws all others; it takes its own count of calls in ascending order only
UPLOADED_FILES = ("config.yaml", "manifest.json", "*.safetensors")  # of a checkpoint: what is needed to use it


@dataclass(kw_only=True, slots=True)
class WandbConfig(Section):
    """Where a run appears on Weights & Biases. The key of an account is read by wandb itself, never from a config."""

    project: str = ""  # empty = visual-tokenizers, where loop.trackers has wandb
    entity: str = ""  # user or team; empty = the account's own
    name: str = ""  # of the run; empty = the name of its folder
    log_checkpoint: bool = False  # when finished, upload the last weights as an artifact


class WandbTracker(Tracker):
    """The wandb run of a folder.

    Raises UserError if wandb is not installed, or cannot start: no key, no network, no rights in the project.
    """

    def __init__(self, run_dir: Path, section: WandbConfig, config: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            command = install_hint("quickstart", "wandb")
            raise UserError(f"loop.trackers=[wandb] needs wandb; run: {command}") from error

        self._library = wandb
        self._section = section
        project = section.project or DEFAULT_PROJECT

        # What earlier starts have sent.
        self._was_started = (run_dir / ID_FILE).is_file()
        self._known: set[tuple[int, frozenset[str]]] = set()  # records
        self._known_pictures = {path.name for path in (run_dir / "samples").glob("*.png") if self._was_started}
        self._id = _run_id(run_dir)
        try:
            self._run = wandb.init(
                project=project,
                entity=section.entity or None,
                dir=str(run_dir),
                name=section.name or run_name(run_dir),
                id=self._id,
                resume="allow",
                config=OmegaConf.to_container(OmegaConf.create(to_yaml(config))),
            )
        except wandb.Error as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"loop.wandb.project={project}: wandb cannot start: {reason}. Set WANDB_API_KEY (or run: wandb login), "
                "set WANDB_MODE=offline to upload later, or leave wandb out of loop.trackers"
            ) from error
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def begin(self, step: int, records: Sequence[Record]) -> None:
        """Sends the records up to `step` that wandb lacks, and notes those that it has, which may come again.

        What a resumed training repeats is equal to what was sent.
        """
        newest_sent = self._newest_step(records)
        for record in records:
            if record["step"] <= newest_sent:
                self._known.add(record_kind(record["step"], record))
            elif record["step"] <= step:
                self.log(metrics_of(record), int(record["step"]))

    def _newest_step(self, records: Sequence[Record]) -> int:
        """The newest step that wandb has: by its own summary, or offline by the records of earlier starts."""
        if not self._was_started:
            return -1
        newest = self._run.summary.get(STEP)
        if newest is not None:
            return int(newest)
        return max((int(record["step"]) for record in records), default=-1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Sends a record, unless an earlier start has."""
        if record_kind(step, metrics) not in self._known:
            self._run.log({STEP: step, **metrics})

    def log_picture(self, path: Path) -> None:
        """Sends a picture, unless an earlier start has; those of one kind can be leafed through by step."""
        if path.name not in self._known_pictures:
            kind, step = picture_kind(path)
            steps = {} if step is None else {STEP: step}
            self._run.log({**steps, f"samples/{kind}": self._library.Image(str(path))})

    def finish(self, summary: Mapping[str, Any], checkpoint: Path | None) -> None:
        """Sends the summary and, where the config asks for it, the weights."""
        self._run.summary.update(dict(summary))
        if self._section.log_checkpoint and checkpoint is not None:
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{self._run.name or 'run'}-{self._id}")
            artifact = self._library.Artifact(name, type="model", metadata=dict(summary))
            for pattern in UPLOADED_FILES:
                for path in sorted(checkpoint.glob(pattern)):
                    artifact.add_file(str(path))
            self._run.log_artifact(artifact, aliases=["latest", checkpoint.name])

    def where(self) -> str:
        """The address of the run; offline, the command that uploads what all starts have written."""
        folders = Path(self._run.dir).parent.with_name("offline-run-*")
        return getattr(self._run, "url", None) or f"wandb sync {folders}"

    def close(self, failed: bool) -> None:
        """Ends the run; one that failed is marked as such."""
        self._run.finish(exit_code=int(failed))


def _run_id(run_dir: Path) -> str:
    """The id of the run in a folder; a new one where there is none."""
    path = run_dir / ID_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()

    # Runs that began with older versions have the hash of their path.
    is_old = (run_dir / "wandb").is_dir()
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16] if is_old else uuid.uuid4().hex[:16]
    write_atomic(path, identity + "\n")
    return identity
