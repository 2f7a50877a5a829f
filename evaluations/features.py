"""Feature extractors of Frechet distances, by name. Only `inception` gives a number that may be called FID.

inception            TensorFlow-compatible Inception network of torch-fidelity, from a weights file     -> fid
efficientnet_lite0   global mean of the stride-16 map (112 numbers), packaged weights, for offline work -> frechet_lite0
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetError, AssetsConfig, read_state, resolve, seeded
from engine.checkpoint import load_strict
from engine.distributed import full_precision
from engine.images import to_float
from tokenizer.losses.backbones import Frozen, channels_last, lite0_features

LITE0_INPUT = 64  # pixels; smaller and larger images are resized to this


class Lite0Extractor(nn.Module):
    """uint8 images (B,3,H,W) -> (B,112)."""

    dim, metric = 112, "frechet_lite0"

    def __init__(self, assets: AssetsConfig) -> None:
        super().__init__()
        self.network, self.stamp = lite0_features(assets, (16,))

    @torch.inference_mode()
    def forward(self, images_u8: Tensor) -> Tensor:
        x = to_float(images_u8)
        x = F.interpolate(x, size=(LITE0_INPUT, LITE0_INPUT), mode="bilinear", align_corners=False, antialias=True)
        with full_precision(x.device):
            return self.network(channels_last(x))[0].mean((2, 3))


class InceptionExtractor(nn.Module):
    """uint8 images (B,3,H,W) -> (B,2048) pool features of the 2015-12-05 Inception network, resized as TensorFlow 1
    does.
    """

    dim, metric = 2048, "fid"

    def __init__(self, assets: AssetsConfig) -> None:
        super().__init__()
        resolved = resolve("inception", assets)
        if resolved.stamp == "download":
            raise AssetError("inception: ALLOW_DOWNLOAD does not cover it; put the file into PRETRAINED_DIR")
        with seeded():
            network = _unloaded_inception()
        if resolved.path is not None:
            load_strict(network, read_state(resolved.path), resolved.path)
        self.network, self.stamp = Frozen(network), resolved.stamp

    @torch.inference_mode()
    def forward(self, images_u8: Tensor) -> Tensor:
        with full_precision(images_u8.device):
            return self.network(images_u8)[0].float()


def _unloaded_inception() -> nn.Module:
    """torch-fidelity's network as initialized. Its constructor unpickles a weights file; ours gets an empty one
    instead, since we read the real file ourselves, safely.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, *args, **kwargs):
            return super().load_state_dict(state, *args, **kwargs) if state else None

    with tempfile.TemporaryDirectory() as folder:
        placeholder = Path(folder) / "empty.pth"
        torch.save({}, placeholder)
        return Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(placeholder))


EXTRACTORS: dict[str, Callable[[AssetsConfig], nn.Module]] = {
    "efficientnet_lite0": Lite0Extractor,
    "inception": InceptionExtractor,
}
