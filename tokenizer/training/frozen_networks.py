"""The frozen pretrained networks of the tokenizer loss: the perceptual network and the semantic teacher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.data.images import to_float
from engine.data.samples import center_batch
from engine.data.sources import ImageSource
from engine.world import World
from tokenizer.losses.perceptual import PERCEPTUAL, PerceptualLoss
from tokenizer.losses.semantic import build_teacher
from tokenizer.models.base import Tokenizer
from tokenizer.training.config import TokenizerTrainConfig

FROZEN_STAMPS = ("weights",)  # keys of `checkpoint_facts` that must be equal for a resume
TEACHER_BATCH = 32  # fixed, so that cached features do not depend on how a run was interrupted


@dataclass
class FrozenNetworks:
    """The frozen networks of the loss, those that are in use, and which weights they hold.

    `stamps` says by name which weights each network holds. `teacher_cache` (num_images, cells, dim) holds the teacher's
    features by image index, on the device of the training: a look-up does not wait for it.
    """

    perceptual: PerceptualLoss | None = None
    teacher: nn.Module | None = None
    teacher_cache: Tensor | None = None
    stamps: dict[str, str] = field(default_factory=dict)

    def teacher_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        """The teacher's features of images (B,3,H,W): from the cache where they have an `index` (B,) in it."""
        if self.teacher_cache is not None and index is not None:
            return self.teacher_cache[index]
        return self.teacher(images)

    def checkpoint_facts(self) -> dict[str, Any]:
        """What checkpoints say about these networks; `weights: random` where one is a stand-in."""
        random = sorted(name for name, stamp in self.stamps.items() if stamp == "random")
        facts: dict[str, Any] = {"networks": self.stamps}
        if random:
            facts |= {"weights": "random", "random": random}
        return facts


def build_frozen_networks(config: TokenizerTrainConfig, network: Tokenizer, world: World) -> FrozenNetworks:
    """The pretrained networks that the active terms need; `network` says how large the teacher's grid is."""
    frozen = FrozenNetworks()
    if config.loss.perceptual_weight > 0:
        perceptual, stamp = PERCEPTUAL[config.loss.perceptual](config.assets, config.loss.lpips_dropout)
        frozen.perceptual = perceptual.to(world.device)
        frozen.stamps[config.loss.perceptual] = stamp
    if config.semantic.enabled:
        teacher = build_teacher(config.semantic, network.semantic_grid, config.assets)
        frozen.teacher = teacher.to(world.device)
        frozen.stamps[config.semantic.teacher] = teacher.stamp
    return frozen


@torch.no_grad()
def cached_features(teacher: nn.Module, source: ImageSource, image_size: int, world: World) -> Tensor:
    """Teacher features of all images (num_images, cells, dim), computed once and shared by the ranks."""

    def features(rows: np.ndarray) -> Tensor:
        images = to_float(center_batch(source, image_size, rows, skip_broken=False))
        return teacher(images.to(world.device))

    shape = features(np.zeros(1, dtype=int)).shape[1:]
    table = torch.zeros(len(source), *shape, device=world.device)
    batches = torch.arange(len(source)).split(TEACHER_BATCH)
    for rows in batches[world.rank :: world.size]:
        table[rows] = features(rows.numpy())
    return world.sum(table)
