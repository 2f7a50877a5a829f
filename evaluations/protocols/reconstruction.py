"""The rules of two published reconstruction evaluations, and what they make of a batch of images.

adm     GigaTok and LlamaGen: ADM's centre crop, uint8 by clamp(127.5 x + 128), TensorFlow's resize for rFID
wetok   WeTok: bilinear centre crop, truncated uint8 for PSNR and SSIM, rFID of unrounded images
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as VF

from engine.data.crops import center_crop
from engine.data.images import image_tensor, resize_for_evaluation, to_float, to_uint8
from engine.data.sources import ImageSource, read_source
from engine.messages import UserError
from engine.world import World
from evaluations.image_sets import rank_batches


def bilinear_crop(image: Image.Image, size: int) -> Image.Image:
    """Short side to `size` (bilinear with antialias), then the central window, as WeTok's evaluation does."""
    return VF.center_crop(VF.resize(image, size, VF.InterpolationMode.BILINEAR), [size, size])


def truncated_uint8(images: Tensor) -> Tensor:
    """float in [-1,1] -> uint8 without rounding, as WeTok's evaluation does (applied to originals as well)."""
    return ((images.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


@dataclass(frozen=True)
class ReconstructionProtocol:
    """What two published evaluations do differently."""

    crop: Callable[[Image.Image, int], Image.Image]
    crop_name: str
    to_uint8: Callable[[Tensor], Tensor]
    rounding: str
    lpips: dict[str, str]  # metric -> network
    float_features: bool  # rFID of unrounded images


RULES = {
    "adm": ReconstructionProtocol(
        crop=center_crop,
        crop_name="centre",
        to_uint8=to_uint8,
        rounding="uint8(clamp(127.5 x + 128))",
        lpips={"lpips": "vgg"},
        float_features=False,
    ),
    "wetok": ReconstructionProtocol(
        crop=bilinear_crop,
        crop_name="bilinear centre",
        to_uint8=truncated_uint8,
        rounding="uint8(255 (x + 1) / 2), truncated",
        lpips={"lpips_vgg": "vgg", "lpips_alex": "alex"},
        float_features=True,
    ),
}


def pad_to(images: Tensor, factor: int, min_cells: int = 1) -> tuple[Tensor, tuple[slice, slice]]:
    """Images (B,3,H,W) padded with 0 (mid grey) on all sides to multiples of `factor`, `min_cells` of them or more, and
    the window of the original; the left and upper margins are the smaller ones.
    """
    height, width = images.shape[-2:]
    down, right = (max(-side % factor, min_cells * factor - side) for side in (height, width))
    top, left = down // 2, right // 2
    padded = F.pad(images, (left, right - left, top, down - top))
    return padded, (slice(top, top + height), slice(left, left + width))


class Reconstructor:
    """Originals -> (originals, reconstructions, indices) under the rules of a protocol; float, not clamped."""

    def __init__(self, tokenizer: nn.Module, args: argparse.Namespace) -> None:
        self.tokenizer, self.rules, self.whole = tokenizer, RULES[args.protocol], args.original_resolution
        self.size = tokenizer.image_size
        self.eval_size = args.image_size_eval or self.size
        if self.whole and "any_size" not in tokenizer.capabilities:
            raise UserError("--original-resolution: this tokenizer has learned positions for one image size")
        if self.whole and args.image_size_eval:
            raise UserError("--original-resolution and --image-size-eval exclude each other")

    def batches(
        self, source: ImageSource, size: int, skip_broken: bool, world: World
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(image numbers, originals uint8)."""
        for ids in rank_batches(len(source), 1 if self.whole else size, world):
            images = [read_source(source, int(i), skip_broken)[0] for i in ids]
            if not self.whole:
                images = [self.rules.crop(image, self.size) for image in images]
            yield ids, torch.stack([image_tensor(image) for image in images])

    def __call__(self, originals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = to_float(originals)
        if self.whole:
            padded, window = pad_to(images, self.tokenizer.factor, self.tokenizer.min_cells)
            grid = (padded.shape[2] // self.tokenizer.factor, padded.shape[3] // self.tokenizer.factor)
            indices = self.tokenizer.encode(padded).indices
            return images, self.tokenizer.decode_indices(indices, grid)[:, :, *window], indices
        indices = self.tokenizer.encode(images).indices
        made = self.tokenizer.decode_indices(indices)
        return resize_for_evaluation(images, self.eval_size), resize_for_evaluation(made, self.eval_size), indices
