"""The reconstruction evaluation of WeTok (arXiv:2508.05599), as its released code measures.

Bilinear center crop, truncated uint8 for PSNR and SSIM, rFID of images that are not rounded, LPIPS of two networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from PIL import Image
from torch import Tensor, nn

from engine.data.resampling import Resize, resized_window
from engine.image_metrics import ssim
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.extractors import extractors_with
from evaluations.metrics.inception_resizes import TorchInception
from evaluations.protocols.reconstruction import ReconstructionProtocol, Score, lpips_score, psnr_score


def bilinear_crop(image: Image.Image, size: int) -> Image.Image:
    """Short side to `size` (bilinear with antialias), then the central window: as torchvision resizes and crops."""
    width, height = image.size
    short = min(width, height)
    resize = Resize((int(size * width / short), int(size * height / short)), Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2.0) for side in resize.size)
    return resized_window(image, [resize], (left, top, left + size, top + size))


def truncated_uint8(images: Tensor) -> Tensor:
    """float in [-1,1] -> uint8 without rounding; applied to originals as well."""
    return ((images.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)


class WeTokProtocol(ReconstructionProtocol):
    """See the module docstring."""

    name = "wetok"
    crop_name = "bilinear center"
    rounding = "uint8(255 (x + 1) / 2), truncated"
    resize_name = TorchInception.input_resize
    lpips_backbones = {"lpips_vgg": "vgg", "lpips_alex": "alex"}

    def crop(self, image: Image.Image, size: int) -> Image.Image:
        return bilinear_crop(image, size)

    def to_uint8(self, images: Tensor) -> Tensor:
        return truncated_uint8(images)

    def features(self, extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
        return extractor.features_of_floats(images.clamp(-1, 1))

    def scores(self, lpips: Mapping[str, nn.Module]) -> dict[str, Score]:
        scores: dict[str, Score] = {
            "psnr": psnr_score,
            "ssim": lambda batch: ssim(batch.reconstructions_u8, batch.targets),
        }
        return scores | {name: lpips_score(network, clamp=True) for name, network in lpips.items()}

    def problems(self, extractor: Extractor | None, reference: str) -> Iterator[str]:
        if extractor is None:
            return
        if "float_images" not in extractor.capabilities:
            accepted = ", ".join(extractors_with("float_images"))
            yield f"measures rFID of images that are not rounded: use --extractor {accepted}, or none"
        if reference != "val":
            yield "measures against the same images, cropped its way: leave out --reference"
