"""What the doctor knows of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from autoregressive.training.config import GPTTrainConfig
from engine.aliases import current_tree
from engine.checkpoint.manifest import checkpoint_folders, read_manifest
from engine.config import flatten, read_yaml
from engine.messages import UserError
from engine.run_log import read_lines, read_metrics
from engine.yaml_files import read_layers
from tokenizer import load_tokenizer
from tokenizer.training.config import TokenizerTrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"


CURVES = CONFIGS / "quickstart" / "reference_curves.json"


LATE = 0.25  # the share of the records at the end that counts as "now"


PICTURE = {"reconstruction_l2": "l2", "reconstruction_l1": "l1", "perceptual": "perceptual"}  # term: loss.<>_weight


ASKED = ("NPROC_PER_NODE", "gpus", "GPUS")  # processes per machine for scripts/launch.sh; the first counts


Severity = tuple[float, str] | None  # how many times its threshold, above 1 = named; the evidence


def _one_head(record: dict[str, float]) -> dict[str, float]:
    """Of a linear probe, whose heads `loss/<rate>` train side by side and diverge at high rates by design: the best."""
    heads = {name: value for name, value in record.items() if name.startswith("loss/")}
    if not heads:
        return record
    best = min((value for value in heads.values() if math.isfinite(value)), default=math.nan)
    return {name: value for name, value in record.items() if name not in heads} | {"loss": best}


def _current(tree: DictConfig) -> DictConfig:
    """A config of a tokenizer or a GPT with present names of its keys; other configs as they are."""
    if "loss" in tree:
        return current_tree(TokenizerTrainConfig, tree)
    return current_tree(GPTTrainConfig, tree) if "codes" in tree.get("data", {}) else tree


def _without_variants(recipes: list[tuple[str, DictConfig]]) -> list[tuple[str, DictConfig]]:
    """The recipes that are not laid over another one of them: a variant trains the same network otherwise."""
    files = {CONFIGS / name.split()[0] for name, _ in recipes}
    bases = {file: {Path(layer) for layer, _ in read_layers(file)[:-1]} for file in files if file.is_file()}
    return [(name, tree) for name, tree in recipes if not bases.get(CONFIGS / name.split()[0], set()) & files]


def _phases(name: str, tree: DictConfig) -> list[tuple[str, DictConfig]]:
    """A recipe as each of its phases trains it, under `<name> phase_<n>`; one without phases as it is."""
    trees = []
    for phase in tree.get("phases", []):
        own = {"optim": {"lr": phase.lr}, "loop": {"steps": phase.steps}}
        own["model"] = {"wetok": {"generative_decoder": phase.get("generative_decoder", False)}}
        trees.append(OmegaConf.merge(tree, own))
    return [(f"{name} phase_{n}", own) for n, own in enumerate(trees, start=1)] or [(name, tree)]


@dataclass
class RunEvidence:
    """A run folder, read once. `recipes` are the shipped configs that it could be a run of, phase by phase."""

    dir: Path
    recipe: Path | None = None  # named by the user
    config: DictConfig = field(init=False)

    def __post_init__(self) -> None:
        if not (self.dir / "config.yaml").is_file():
            raise UserError(f"{self.dir} has no config.yaml; is it the folder of a run?")
        self.config = _current(read_yaml(self.dir / "config.yaml"))
        records = read_metrics(self.dir)
        self.train = [_one_head(r) for r in records if "steps_per_second" in r]
        self.val = [r for r in records if any(k.startswith("val/") for k in r)]
        self.starts = read_lines(self.dir / "starts.jsonl")
        self.folders = checkpoint_folders(self.dir)

    def get(self, key: str, default: Any = None) -> Any:
        return OmegaConf.select(self.config, key, default=default)

    def series(self, name: str) -> list[float]:
        return [r[name] for r in (self.val if name.startswith("val/") else self.train) if name in r]

    def late(self, name: str) -> float | None:
        """The median of the last quarter of a metric; None where there are fewer than 4 records."""
        values = self.series(name)
        return median(values[-max(1, int(LATE * len(values))) :]) if len(values) >= 4 else None

    @property
    def is_tokenizer(self) -> bool:
        return "loss" in self.config

    @property
    def step(self) -> int:
        return int(max([0, *(r["step"] for r in self.train), *(read_manifest(f)["step"] for f in self.folders)]))

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.dir, weights="model") if self.is_tokenizer and self.folders else None

    @cached_property
    def code_counts(self) -> list[torch.Tensor]:
        """How often each code of each group occurs among the recent training tokens of the checkpoint. Left out: tokens
        of a warm-up without codes, the empty start of the window, groups with more codes than tokens.
        """
        if self.tokenizer is None:
            return []
        quantizer, step = self.tokenizer.quantizer, read_manifest(self.folders[-1])["step"]
        steps = step - self.get(f"model.quantizer.{self.get('model.quantizer.name')}.warmup_steps", 0)
        seen = quantizer.recent_indices.long().view(len(quantizer.recent_indices), -1)
        seen = seen[max(0, len(seen) - steps * self.get("data.global_batch_size") * self.tokenizer.num_tokens) :]
        rows = seen[(seen >= 0).all(1)]
        sizes = zip(rows.T, quantizer.group_sizes, strict=True)
        return [torch.bincount(column, minlength=size).double() for column, size in sizes if len(rows) >= size]

    @cached_property
    def recipes(self) -> list[tuple[str, DictConfig]]:
        """The file the user named; else every YAML whose whole `model` section this run has, its namesakes first. Of
        one in phases that of this run's folder, or all where the folder does not say.
        """
        own, found = flatten(self.config.get("model", {})), []
        for path in sorted(CONFIGS.rglob("*.yaml")) if self.recipe is None else [self.recipe]:
            path = path.resolve()
            name = str(path.relative_to(CONFIGS)) if path.is_relative_to(CONFIGS) else path.name
            for phase, tree in _phases(name, _current(read_yaml(path))):
                model = flatten(tree.model) if {"model", "optim", "data"} <= set(tree) else {}
                fits = bool(model) and all(own.get(k) == v for k, v in model.items())
                if self.recipe is not None or fits:
                    found.append((len(model), phase, tree))
        most = max((n for n, _, _ in found), default=0)
        best = [(name, tree) for n, name, tree in found if n == most or self.recipe is not None]
        folder = self.dir.resolve()
        best = [(n, t) for n, t in best if n.endswith(f" {folder.name}")] or best
        namesakes = [(n, t) for n, t in best if Path(n.split()[0]).stem in (folder.name, folder.parent.name)]
        return namesakes or _without_variants(best)


Check = Callable[[RunEvidence], Severity]


def combine(found: Sequence[tuple[float, str]]) -> Severity:
    """One reading of several: the worst of them, with the evidence of all that are named."""
    if not found:
        return None
    worst = max(found)
    return worst[0], ", ".join(text for times, text in found if times > 1) or worst[1]
