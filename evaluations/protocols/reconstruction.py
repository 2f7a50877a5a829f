"""Reconstructions under the rules of a published evaluation, and what such rules are.

The protocols themselves stand in files of their own; `evaluations.protocols.registry` has them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from engine.data.images import image_tensor, resize_for_evaluation, to_float
from engine.data.sources import ImageSource, log_replaced, read_source
from engine.devices import full_precision
from engine.finite import numbered
from engine.image_metrics import MAX_PSNR, psnr
from engine.messages import UserError
from engine.world import World
from evaluations.image_sets import RESIZE, ImageBatch, rank_batches
from evaluations.metrics.extractor import Extractor
from tokenizer.models.reconstructing import Reconstructing


class ReconstructionProtocol:
    """The rules of one published evaluation of reconstructions: crop, rounding, scores, features."""

    name: ClassVar[str]  # in the registry, and in results
    crop_name: ClassVar[str]  # in results
    rounding: ClassVar[str]  # in results
    resize_name: ClassVar[str | None] = None  # how images get the size of the extractor; None: by the extractor's rule
    lpips_backbones: ClassVar[dict[str, str]]  # metric -> backbone of the lpips package
    unclamped_scores: ClassVar[frozenset[str]] = frozenset()  # scores of floats as decoded, beyond [-1,1] too

    def crop(self, image: Image.Image, size: int) -> Image.Image:
        """The part (size,size) of an image that counts."""
        raise NotImplementedError

    def to_uint8(self, images: Tensor) -> Tensor:
        """float in [-1,1] or beyond -> uint8."""
        raise NotImplementedError

    def features(self, extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
        """Features of float images in [-1,1] or beyond, for the distance."""
        raise NotImplementedError

    def scores(self, lpips: Mapping[str, nn.Module]) -> dict[str, Score]:
        """{metric: score} of pairs. `lpips`: networks for `lpips_backbones`, or none."""
        raise NotImplementedError

    def problems(self, extractor: Extractor | None, reference: str) -> Iterator[str]:
        """Why this protocol cannot be followed with this extractor and this --reference."""
        return iter(())


@dataclass
class ReconstructedBatch:
    """Some images and their reconstructions."""

    ids: Tensor  # (B,) int64, numbers of the images
    originals: Tensor  # (B,3,H,W) float in [-1,1]; beyond where they were resized
    reconstructions: Tensor  # (B,3,H,W) float, not clamped
    indices: Tensor | None  # (B,N) or (B,N,G); None where they did not come from codes
    num_pixels: int  # per original image, before any resize
    is_resized: bool  # both were resized for the measurement
    protocol: ReconstructionProtocol

    @cached_property
    def originals_u8(self) -> Tensor:
        return self.protocol.to_uint8(self.originals)

    @cached_property
    def reconstructions_u8(self) -> Tensor:
        return self.protocol.to_uint8(self.reconstructions)

    @cached_property
    def targets(self) -> Tensor:
        """What PSNR and SSIM compare with: originals that were resized are not rounded, as published."""
        return (self.originals.double() + 1) / 2 if self.is_resized else self.originals_u8


Score = Callable[[ReconstructedBatch], Tensor]  # -> (B,)


def psnr_score(batch: ReconstructedBatch) -> Tensor:
    """PSNR in dB of rounded reconstructions (B,); identical pairs count as `MAX_PSNR`."""
    return psnr(batch.reconstructions_u8, batch.targets).clamp_max(MAX_PSNR)


def lpips_score(network: nn.Module, clamp: bool) -> Score:
    """LPIPS of reconstructions, clamped to [-1,1] or as decoded, in full precision."""

    def score(batch: ReconstructedBatch) -> Tensor:
        reconstructions = batch.reconstructions.clamp(-1, 1) if clamp else batch.reconstructions
        with full_precision(reconstructions.device):
            return network(reconstructions, batch.originals).flatten()

    return score


# ------------------------------------------------------------------------------------------------ through the tokenizer
def pad_to(images: Tensor, factor: int, min_cells: int = 1) -> tuple[Tensor, tuple[slice, slice]]:
    """Images (B,3,H,W) padded to multiples of `factor`, and the window of the original.

    Each side becomes `min_cells` times `factor` or more. The margins are 0 (mid gray) on all sides; the left and upper
    ones are the smaller ones.
    """
    height, width = images.shape[-2:]
    extra_height = max(-height % factor, min_cells * factor - height)
    extra_width = max(-width % factor, min_cells * factor - width)
    top, left = extra_height // 2, extra_width // 2
    padded = F.pad(images, (left, extra_width - left, top, extra_height - top))
    return padded, (slice(top, top + height), slice(left, left + width))


class Reconstructor:
    """Images through a tokenizer and its codes (or an autoencoder), under the rules of a protocol.

    `eval_size`: measured at this size (default: that of the tokenizer). `whole`: whole images, one at a time, padded to
    the tokenizer's factor.
    """

    def __init__(
        self, tokenizer: Reconstructing, protocol: ReconstructionProtocol, eval_size: int | None, whole: bool
    ) -> None:
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.whole = whole
        self.size = tokenizer.image_size
        self.eval_size = eval_size or self.size
        if whole and "any_size" not in tokenizer.capabilities:
            raise UserError("--original-resolution: this tokenizer is for images of one size")
        if whole and eval_size:
            raise UserError("--original-resolution and --image-size-eval exclude each other")

    def facts(self) -> dict[str, Any]:
        """What a protocol says about the images that are measured."""
        return {
            "crop": "none, padded to the factor" if self.whole else self.protocol.crop_name,
            "image_size": "original" if self.whole else self.size,
            "image_size_eval": "original" if self.whole else self.eval_size,
            "resize": RESIZE,
            "rounding": self.protocol.rounding,
        }

    def originals(self, source: ImageSource, batch_size: int, skip_broken: bool, world: World) -> Iterator[ImageBatch]:
        """The images of this rank, cropped, or whole and one at a time."""
        for ids in rank_batches(len(source), 1 if self.whole else batch_size, world):
            images = [read_source(source, int(i), skip_broken)[0] for i in ids]
            if not self.whole:
                images = [self.protocol.crop(image, self.size) for image in images]
            yield ImageBatch(ids, torch.stack([image_tensor(image) for image in images]))
        log_replaced(source)

    def reconstruct(self, ids: Tensor, images_u8: Tensor) -> ReconstructedBatch:
        """Originals uint8 (B,3,H,W) through encoder, codes and decoder, then to the size of the measurement."""
        # Through the codes; whole images keep their size.
        originals = to_float(images_u8)
        with numbered("image", ids):
            if self.whole:
                reconstructions, indices = self._whole_images(originals)
            else:
                decoded, indices = self.tokenizer.reconstruct(originals)
                reconstructions = resize_for_evaluation(decoded, self.eval_size)
                originals = resize_for_evaluation(originals, self.eval_size)

        return ReconstructedBatch(
            ids=ids,
            originals=originals,
            reconstructions=reconstructions,
            indices=indices,
            num_pixels=images_u8.shape[-2] * images_u8.shape[-1],
            is_resized=self.eval_size != self.size,
            protocol=self.protocol,
        )

    def _whole_images(self, originals: Tensor) -> tuple[Tensor, Tensor | None]:
        """(reconstructions without the margins, indices or None)."""
        padded, window = pad_to(originals, self.tokenizer.factor, self.tokenizer.min_cells)
        reconstructions, indices = self.tokenizer.reconstruct(padded)
        return reconstructions[:, :, *window], indices
