"""What the doctor knows about a run: its config, records, starts and checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.config import read_yaml
from engine.installation import CONFIGS
from engine.messages import UserError
from engine.run_log import read_lines, read_metrics
from evaluations.doctor.recipes import Recipe, closest, current_config, recipes_for, recipes_of
from tokenizer import load_tokenizer
from tokenizer.quantizers.usage import images_of_window, tokens_by_scale

CURVES = CONFIGS / "quickstart" / "reference_curves.json"
LATE = 0.25  # fraction of the records, at the end, that counts as "now"
EARLY = 0.1  # fraction of the steps, at the start, in which some symptoms are normal
MIN_RECORDS = 4  # of a metric, for a statement about how it is now


def reference_curves() -> dict[str, Any]:
    """Reads the curves of healthy quick starts, which tests/reference_curves.py makes.

    Returns {title of a recipe: {"steps", "seed", "at": steps, "metrics": {name: values at these steps}}}.
    """
    curves = json.loads(CURVES.read_text(encoding="utf-8"))
    return {name: curve for name, curve in curves.items() if isinstance(curve, dict)}


def _best_head(record: Mapping[str, float]) -> dict[str, float]:
    """Replaces the losses of a linear probe's heads by that of the best one, as `loss`.

    Other records stay as they are. Heads train side by side under `loss/<rate>`, and those with high rates diverge by
    design.
    """
    heads = {name: value for name, value in record.items() if name.startswith("loss/")}
    if not heads:
        return dict(record)
    best = min((value for value in heads.values() if math.isfinite(value)), default=math.nan)
    return {name: value for name, value in record.items() if name not in heads} | {"loss": best}


@dataclass
class RunEvidence:
    """A run folder, read once."""

    dir: Path
    recipe: Path | None = None  # named by the user
    config: DictConfig = field(init=False)

    def __post_init__(self) -> None:
        if not (self.dir / "config.yaml").is_file():
            raise UserError(f"{self.dir} has no config.yaml; is it the folder of a run?")
        self.config = current_config(read_yaml(self.dir / "config.yaml"))

        # Records of training have a speed, those of held-out data a prefix.
        records = read_metrics(self.dir)
        self.train = [_best_head(record) for record in records if "steps_per_second" in record]
        self.val = [record for record in records if any(name.startswith("val/") for name in record)]

        self.starts = read_lines(self.dir / "starts.jsonl")
        self.checkpoints = checkpoint_folders(self.dir)

    # ------------------------------------------------------------------------------------------------ config
    def get(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key of the config."""
        return OmegaConf.select(self.config, key, default=default)

    @property
    def is_tokenizer(self) -> bool:
        return "loss" in self.config

    @property
    def quantizer_section(self) -> DictConfig:
        """The section of the quantizer in use; empty for other networks."""
        name = self.get("model.quantizer.name")
        return self.get(f"model.quantizer.{name}", OmegaConf.create())

    @cached_property
    def recipes(self) -> list[Recipe]:
        """The recipe that the user named, else shipped ones with this run's `model` section."""
        if self.recipe is not None:
            return closest(recipes_of(self.recipe), self.dir)
        return recipes_for(self.config, self.dir)

    # ------------------------------------------------------------------------------------------------ records
    def series(self, name: str) -> list[float]:
        """All values of a metric, in the order of the steps."""
        records = self.val if name.startswith("val/") else self.train
        return [record[name] for record in records if name in record]

    def late(self, name: str) -> float | None:
        """The median of the last quarter of a metric; None if there are fewer than 4 records."""
        values = self.series(name)
        if len(values) < MIN_RECORDS:
            return None
        return median(values[-max(1, int(LATE * len(values))) :])

    # ------------------------------------------------------------------------------------------------ checkpoints
    @cached_property
    def step(self) -> int:
        """The last step that was recorded or saved."""
        recorded = [record["step"] for record in self.train]
        saved = [read_manifest(folder)["step"] for folder in self.checkpoints]
        return int(max([0, *recorded, *saved]))

    @property
    def is_early(self) -> bool:
        """Whether less than a tenth of the run is over."""
        return self.step < EARLY * self.get("loop.steps", 1)

    @cached_property
    def tokenizer(self) -> Any:
        """The newest checkpoint with raw weights; None without one, or for other networks."""
        if not (self.is_tokenizer and self.checkpoints):
            return None
        return load_tokenizer(self.dir, weights="model")

    @cached_property
    def code_counts(self) -> dict[int, torch.Tensor]:
        """How often each code occurs among the recent training tokens: {group: counts (K,)}.

        These are the tokens of the newest checkpoint. Left out are tokens of a warm-up without codes, the empty start
        of the window, and groups with more codes than tokens.
        """
        if self.tokenizer is None:
            return {}
        columns = zip(self._recent_indices.unbind(1), self.tokenizer.quantizer.group_sizes, strict=True)
        counts = {group: _counts_of(column, size) for group, (column, size) in enumerate(columns)}
        return {group: of_group for group, of_group in counts.items() if of_group is not None}

    @cached_property
    def scale_counts(self) -> dict[int, torch.Tensor]:
        """The same for the tokens of each scale: {cells per side: counts (K,)}; empty where tokens are of one kind."""
        if self.tokenizer is None or not self.tokenizer.quantizer.scales:
            return {}
        quantizer = self.tokenizer.quantizer
        images = images_of_window(self._recent_indices[:, 0], quantizer.scales)
        tokens = tokens_by_scale(images, quantizer.scales)
        counts = {side: _counts_of(of_scale, quantizer.codebook_size) for side, of_scale in tokens.items()}
        return {side: of_scale for side, of_scale in counts.items() if of_scale is not None}

    @property
    def _recent_indices(self) -> torch.Tensor:
        """The window of indices (n,G) of the newest checkpoint, without those of a warm-up."""
        quantizer = self.tokenizer.quantizer
        window = quantizer.recent_indices.long().view(len(quantizer.recent_indices), -1)

        # The tokens since the end of the warm-up.
        step = read_manifest(self.checkpoints[-1])["step"]
        steps = step - self.quantizer_section.get("warmup_steps", 0)
        num_tokens = steps * self.get("data.global_batch_size") * self.tokenizer.num_tokens
        return window[max(0, len(window) - num_tokens) :]


def _counts_of(indices: torch.Tensor, size: int) -> torch.Tensor | None:
    """How often each of `size` codes was chosen (K,); None of fewer indices than codes.

    Some quantizers leave indices out in training.
    """
    chosen = indices[indices >= 0]
    return torch.bincount(chosen, minlength=size).double() if len(chosen) >= size else None
