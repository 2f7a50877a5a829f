"""DINOv2 ViT-L/14 without registers (arXiv:2304.07193), the network of FD-DINOv2 (arXiv:2306.04675).

Its weights were trained at 518 px: 37 x 37 patches. For the 16 x 16 patches of 224 px the published network resamples
the table of positions by a rule that timm does not share, so that timm alone gives other features. Here the published
rule makes the table, and timm's network computes with it.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetsConfig, needs_assets
from engine.devices import full_precision
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.input_pixels import normalized, pil_bicubic
from tokenizer.frozen.normalization import IMAGENET
from tokenizer.frozen.timm_vit import adapted_vit

INPUT_SIZE = 224  # pixels
CELLS = 16  # patches per side at that size
POSITION_OFFSET = 0.1  # added to the patches per side where the published code computes its scale factor


def published_positions(table: Tensor, cells: int) -> Tensor:
    """A table of positions (1, 1 + n * n, C) resampled to (1, 1 + cells * cells, C), by the rule of the published code.

    Bicubic without antialias. The factor, not the size, decides where samples lie: (cells + 0.1) / n, so that they are
    not spread over the whole grid. The position of the class token, the first one, stays as it is.

    Raises ValueError where the patches are no square.
    """
    side = math.isqrt(table.shape[1] - 1)
    if side * side != table.shape[1] - 1:
        raise ValueError(f"{table.shape[1] - 1} positions of patches are no square")
    if side == cells:
        return table
    grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factor = (cells + POSITION_OFFSET) / side
    resampled = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", antialias=False)
    patches = resampled.permute(0, 2, 3, 1).reshape(1, cells * cells, -1)
    return torch.cat([table[:, :1].float(), patches], dim=1)


def published_state(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network for images of 224 px, out of those of the published file.

    The file's mask token serves training only. Raises ValueError where the file has no table of positions.
    """
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        raise ValueError("there is no table of positions (pos_embed)")
    positions = published_positions(table, CELLS)
    return {**{name: value for name, value in state.items() if name != "mask_token"}, "pos_embed": positions}


@needs_assets("dinov2_l")
class DINOv2Extractor(Extractor):
    """pool (B,1024): the class token after the last norm, not scaled.

    The whole picture is squashed to 224 x 224 px, as in the published evaluation of FD-DINOv2: by Pillow, on 8-bit
    values. Everything is float32, without autocast and TF32.
    """

    asset: ClassVar[str] = "dinov2_l"
    metric = "fd_dinov2"
    published_distance = "fd_dinov2"
    file_statistics = ("dino_mu", "dino_sigma")  # of GPIC's reference file
    dim = 1024
    input_resize = "squashed to 224, Pillow bicubic, uint8"
    facts = {"resize": input_resize, "positions": "published"}

    mean: Tensor
    std: Tensor

    def __init__(self, assets: AssetsConfig) -> None:
        super().__init__()
        self.network, weights = adapted_vit(self.asset, assets, published_state, num_classes=0, img_size=INPUT_SIZE)
        self.stamp = weights.stamp
        self.has_published_weights = weights.is_known
        mean, std = IMAGENET
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def resized(self, images_u8: Tensor) -> Tensor:
        """Images uint8 (B,3,H,W) -> pixels (B,3,224,224) on the scale 0..255."""
        return pil_bicubic(images_u8, INPUT_SIZE)

    @torch.inference_mode()
    def forward(self, images_u8: Tensor) -> dict[str, Tensor]:
        with full_precision(images_u8.device):
            return {"pool": self.network(normalized(self.resized(images_u8), self.mean, self.std))}


class EDM2Extractor(DINOv2Extractor):
    """The same features of pictures that are resized as in EDM2 (arXiv:2312.02696): by torch, on floats, not rounded.

    They are close to those of the 8-bit rule, and not equal.
    """

    file_statistics = None
    input_resize = "squashed to 224, torch bicubic with antialias, not rounded"
    facts = {"resize": input_resize, "positions": "published"}

    def resized(self, images_u8: Tensor) -> Tensor:
        if images_u8.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, found {images_u8.dtype}")
        return F.interpolate(images_u8.float(), size=(INPUT_SIZE, INPUT_SIZE), mode="bicubic", antialias=True)
