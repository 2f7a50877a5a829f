"""The contract of autoencoders of other programs: images -> images, and what results say of them.

Shapes    images (B,3,H,W) float32 in [-1,1]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from engine.data.config import DataConfig
from engine.finite import require_finite
from engine.messages import ConfigError, UserError
from tokenizer.models.reconstructing import Reconstruction


@dataclass(kw_only=True, slots=True)
class ImagesOnly:
    """The config of a network that was trained elsewhere: all that is known of its images is their size."""

    data: DataConfig = field(default_factory=DataConfig)


class Autoencoder(nn.Module):
    """Base class. A kind of autoencoder defines `recognizes`, `load`, `through` and `facts`."""

    quantizer: ClassVar[None] = None
    capabilities: ClassVar[frozenset[str]] = frozenset({"any_size"})
    min_cells: ClassVar[int] = 1

    image_size: int | None  # pixels; None until `set_image_size`, where the source does not say it
    factor: int  # pixels per cell: sides of images are multiples of it
    provenance: Any = None  # where it came from (`tokenizer.loading.Provenance`)

    # ------------------------------------------------------------------------------------------------ its files
    @classmethod
    def recognizes(cls, source: str | Path) -> bool:
        """Whether a folder, file or address of the hub is an autoencoder of this kind. Nothing is run or fetched but
        small files of an address.
        """
        raise NotImplementedError

    @classmethod
    def load(cls, source: str | Path, *, device: str, trust_jit: bool, header_only: bool = False) -> Autoencoder:
        """The network in evaluation mode, with its `provenance`. With `header_only` names and shapes are looked at, and
        it cannot be used. Raises UserError where it cannot be loaded.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ its use
    def through(self, images: Tensor) -> Tensor:
        """Images -> images (B,3,H,W) of any floating-point type, not clamped."""
        raise NotImplementedError

    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Images through the network. Raises UserError where other shapes come back, and NonFiniteValuesError where
        pixels are not finite.
        """
        found = self.through(images)
        if found.shape != images.shape or not found.is_floating_point():
            raise UserError(
                f"{self.provenance.path} turns images {tuple(images.shape)} into {found.dtype} {tuple(found.shape)}, "
                "which are no images of that size"
            )
        found = found.float()
        require_finite(found, "pixels decoded by the autoencoder")
        return Reconstruction(found, None)

    def set_image_size(self, image_size: int) -> None:
        """Makes another square size the usual one. Raises ConfigError for one that is no multiple of the factor."""
        if image_size % self.factor:
            raise ConfigError(f"image_size={image_size} does not fit this autoencoder: a multiple of {self.factor}")
        self.image_size = image_size

    def summary(self) -> str:
        """What it is, in a few words, for people."""
        return f"autoencoder without codes, {self.image_size} px"

    def facts(self) -> dict[str, Any]:
        """What a result says about this network beside its provenance."""
        raise NotImplementedError


def provenance_config(image_size: int | None) -> ImagesOnly:
    """The config of a provenance."""
    return ImagesOnly(data=DataConfig() if image_size is None else DataConfig(image_size=image_size))
