"""The reconstruction evaluation of GigaTok and LlamaGen, as their released code measures.

ADM's center crop and rounding, TensorFlow's resize for rFID.
"""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image
from torch import Tensor, nn

from engine.data.crops import center_crop
from engine.data.images import to_uint8
from engine.image_metrics import ssim
from evaluations.image_sets import CENTER_CROP, ROUNDING
from evaluations.metrics.extractor import Extractor
from evaluations.protocols.reconstruction import ReconstructionProtocol, Score, lpips_score, psnr_score


class ADMProtocol(ReconstructionProtocol):
    """Rounded images everywhere. `ssim_range2` and `lpips_raw` are what GigaTok and LlamaGen publish."""

    name = "adm"
    crop_name = CENTER_CROP
    rounding = ROUNDING
    lpips_backbones = {"lpips": "vgg"}
    unclamped_scores = frozenset({"lpips_raw"})

    def crop(self, image: Image.Image, size: int) -> Image.Image:
        return center_crop(image, size)

    def to_uint8(self, images: Tensor) -> Tensor:
        return to_uint8(images)

    def features(self, extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
        return extractor(self.to_uint8(images))

    def scores(self, lpips: Mapping[str, nn.Module]) -> dict[str, Score]:
        """The scores; `ssim_range2` has a data range of 2, `lpips_raw` is of images that are not clamped."""
        scores: dict[str, Score] = {
            "psnr": psnr_score,
            "ssim": lambda batch: ssim(batch.reconstructions_u8, batch.targets),
            "ssim_range2": lambda batch: ssim(batch.reconstructions_u8, batch.targets, data_range=2.0),
        }
        if "lpips" in lpips:
            scores["lpips"] = lpips_score(lpips["lpips"], clamp=True)
            scores["lpips_raw"] = lpips_score(lpips["lpips"], clamp=False)
        return scores
