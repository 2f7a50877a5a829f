"""A run on Weights & Biases: its metrics, config and pictures, beside those in the run folder.

The id of the run is kept in <run>/wandb_id.txt. A resumed training continues the same run, and one that was deleted and
started anew is another. `WANDB_MODE=offline` works as in any program; `wandb sync` uploads later.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from engine.atomic_file import write_atomic
from engine.config import to_yaml
from engine.messages import UserError

ID_FILE = "wandb_id.txt"
STEP_OF_NAME = re.compile(r"(.+)_(\d+)")  # a picture: what it shows, and its step


class WandbRun:
    """The wandb run of a folder.

    Raises UserError if wandb is not installed, or cannot start: no key, no network, no rights in the project.
    """

    def __init__(self, run_dir: Path, project: str, config: Any) -> None:
        try:
            import wandb
        except ImportError as error:
            message = "loop.wandb_project needs wandb; run: bash env_install.sh --extras quickstart,wandb"
            raise UserError(message) from error

        self._image = wandb.Image
        try:
            self._run = wandb.init(
                project=project,
                dir=str(run_dir),
                name=run_dir.name,
                id=_run_id(run_dir),
                resume="allow",
                config=OmegaConf.to_container(OmegaConf.create(to_yaml(config))),
            )
        except wandb.Error as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"loop.wandb_project={project}: wandb cannot start: {reason}. Set WANDB_API_KEY (or run: wandb login), "
                "set WANDB_MODE=offline to upload later, or leave the key out"
            ) from error

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def log_picture(self, path: Path) -> None:
        """Logs a picture whose file is named `<what>_<step>`; those of one kind can be leafed through by step."""
        match = STEP_OF_NAME.fullmatch(path.stem)
        kind, step = (match[1], int(match[2])) if match else (path.stem, None)
        self._run.log({f"samples/{kind}": self._image(str(path))}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


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
