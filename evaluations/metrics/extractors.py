"""Feature extractors, by name. Only `inception` gives numbers that may be called FID, sFID or Inception Score.

inception            the network of TensorFlow's FID (2015-12-05) as torch-fidelity rebuilt it, from a weights file
                     pool (B,2048): FID, precision, recall      spatial (B,2023): sFID      logits (B,1008): IS
efficientnet_lite0   pool (B,112): mean of the stride-16 map, packaged weights, for offline work: frechet_lite0
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetError, AssetsConfig, read_state, resolve, seeded
from engine.checkpoint.weights import load_strict
from engine.data.images import to_float
from engine.devices import full_precision
from tokenizer.frozen.base import Frozen, channels_last
from tokenizer.frozen.lite0 import lite0_features

LITE0_INPUT = 64  # pixels; smaller and larger images are resized to this


INCEPTION_INPUT = 299


STEM = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"]


MIDDLE = ["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"]


TAIL = ["Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"]


SPATIAL_CHANNELS = 7  # of the 192 of TensorFlow's mixed_6/conv, which is our Mixed_6d.branch1x1


class Lite0Extractor(nn.Module):
    """uint8 images (B,3,H,W) -> {pool: (B,112)}."""

    dim, metric = 112, "frechet_lite0"

    def __init__(self, assets: AssetsConfig) -> None:
        super().__init__()
        self.network, self.stamp = lite0_features(assets, (16,))

    @torch.inference_mode()
    def forward(self, images_u8: Tensor) -> dict[str, Tensor]:
        x = to_float(images_u8)
        x = F.interpolate(x, size=(LITE0_INPUT, LITE0_INPUT), mode="bilinear", align_corners=False, antialias=True)
        with full_precision(x.device):
            return {"pool": self.network(channels_last(x))[0].mean((2, 3))}


class InceptionExtractor(nn.Module):
    """uint8 images (B,3,H,W) -> {pool, spatial, logits}, float32; see the module docstring.

    The resize is TensorFlow 1's (bilinear, no half pixels, no antialias). Spatial features are in NHWC order, as in the
    published reference files; logits are without bias (ADM's Inception Score).
    """

    dim, spatial_dim, num_classes, metric = 2048, 17 * 17 * SPATIAL_CHANNELS, 1008, "fid"

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
    def forward(self, images_u8: Tensor) -> dict[str, Tensor]:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        if images_u8.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, found {images_u8.dtype}")
        size = (INCEPTION_INPUT, INCEPTION_INPUT)
        x = interpolate_bilinear_2d_like_tensorflow1x(images_u8.float(), size=size, align_corners=False)
        return self._features((x - 128) / 128)

    @torch.inference_mode()
    def of_floats(self, images: Tensor) -> dict[str, Tensor]:
        """float images in [-1,1], not rounded, resized by torch's bilinear rule: the rFID of WeTok's evaluation."""
        size = (INCEPTION_INPUT, INCEPTION_INPUT)
        return self._features(F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False))

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        network = self.network.network
        with full_precision(x.device):
            for name in (*STEM, *MIDDLE):
                x = getattr(network, name)(x)
            spatial = network.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            for name in TAIL:
                x = getattr(network, name)(x)
            pool = x.flatten(1)
            return {"pool": pool, "spatial": spatial, "logits": pool @ network.fc.weight.T}


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
