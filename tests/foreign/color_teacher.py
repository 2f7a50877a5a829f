"""A foreign teacher: the mean color of each cell, plus a constant of its own section."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.assets import AssetsConfig
from engine.validation import Section
from tokenizer.losses.semantic import TEACHERS, Teacher, TeacherKind


@dataclass(kw_only=True, slots=True)
class ColorConfig(Section):
    """Its only option."""

    offset: float = 0.5


class ColorTeacher(Teacher):
    """Images (B,3,H,W) -> (B, grid * grid, 3)."""

    stamp = "no weights"

    def __init__(self, config: ColorConfig, grid: int, assets: AssetsConfig) -> None:
        super().__init__()
        self.config, self.grid = config, grid

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        cells = F.adaptive_avg_pool2d(images.float(), self.grid)
        return cells.flatten(2).mT + self.config.offset


TEACHERS["color"] = TeacherKind(dim=3, build=ColorTeacher, config_class=ColorConfig)
