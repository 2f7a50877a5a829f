"""Features of EfficientNet-Lite0, whose weights a package ships: offline work. No distance of it is FID."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.assets import AssetsConfig, needs_assets
from engine.data.images import to_float
from engine.devices import full_precision
from evaluations.metrics.extractor import Extractor
from tokenizer.frozen.base import channels_last
from tokenizer.frozen.lite0 import LITE0_ASSET, lite0_features

INPUT_SIZE = 64  # pixels; smaller and larger images are resized to this


@needs_assets(LITE0_ASSET)
class Lite0Extractor(Extractor):
    """pool (B,112): mean over the stride-16 map of EfficientNet-Lite0."""

    metric = "frechet_lite0"
    dim = 112
    input_resize = f"torch bilinear to {INPUT_SIZE} with antialias"

    def __init__(self, assets: AssetsConfig) -> None:
        super().__init__()
        self.network, self.stamp = lite0_features(assets, (16,))

    @torch.inference_mode()
    def forward(self, images_u8: Tensor) -> dict[str, Tensor]:
        size = (INPUT_SIZE, INPUT_SIZE)
        x = F.interpolate(to_float(images_u8), size=size, mode="bilinear", align_corners=False, antialias=True)
        with full_precision(x.device):
            return {"pool": self.network(channels_last(x))[0].mean((2, 3))}
