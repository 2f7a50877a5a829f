"""What turns images into images again: tokenizers, and autoencoders of other programs, by one contract."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tokenizer.quantizers.base import Quantizer


class Reconstruction(NamedTuple):
    """What came back of some images."""

    images: Tensor  # (B,3,H,W) float32, not clamped
    indices: Tensor | None  # (B,N) or (B,N,G), the codes between; None where there are none, or nobody reads them


class Reconstructing(Protocol):
    """A loaded network that evaluations reconstruct images with; `tokenizer.models.base.Tokenizer` is one."""

    image_size: int  # pixels, side of the images it is used for
    quantizer: Quantizer | None  # None where its images do not come from codes
    provenance: Any  # where it came from (`tokenizer.loading.Provenance`)

    # With the capability "any_size": pixels per cell, and cells per side that it needs at least.
    factor: int
    min_cells: int

    @property
    def capabilities(self) -> frozenset[str]: ...

    def reconstruct(self, images: Tensor) -> Reconstruction:
        """Images (B,3,H,W) float32 in [-1,1] through the network and back."""

    def summary(self) -> str:
        """What it is, in a few words, for people."""
