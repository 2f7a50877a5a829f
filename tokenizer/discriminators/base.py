"""The contract of all discriminators of the adversarial loss."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from engine.assets import AssetsConfig
from engine.flops import PartFlops


class Discriminator(nn.Module):
    """Base class of all discriminators: images -> logits, large for real ones.

    A discriminator is a class in a file of its own, entered in `tokenizer.discriminators.registry.DISCRIMINATORS` (or
    registered by a plug-in). It is built as `Class(section, assets)`, where `section` is an instance of its
    `config_class` and `assets` resolves pretrained parts, and defines `logits`. Names that
    `nn.Module` itself has, such as `half`, must not be reused for attributes. What `logits` changes in the network must
    be a buffer, as statistics of a batch norm are: where an update is skipped, buffers are put back.
    """

    config_class: ClassVar[type]  # the dataclass of its section `loss.discriminator.<name>`
    stamp: str | None = None  # which weights its pretrained part holds; None without such a part

    def __init__(self, config: Any, assets: AssetsConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def min_image_size(cls, config: Any) -> int:
        """Pixels per side that the `logits` of a network with this section need at least."""
        return 1

    def training_flops(self, image_size: int) -> tuple[PartFlops, ...] | None:
        """What it computes for one image of a step, by part (see `engine.flops`); None where it is not counted.

        It judges the reconstruction in the tokenizer's update, without gradients of its own weights, and learns from
        the image and the reconstruction in its own update.
        """
        return None

    def logits(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1,1] -> logits (B, ...)."""
        raise NotImplementedError

    def forward(self, real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of real and of generated images, one pass each: one call, as data-parallel training needs it."""
        return self.logits(real), self.logits(generated)
