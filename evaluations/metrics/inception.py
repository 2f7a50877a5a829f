"""Inception, the network of TensorFlow's FID (2015-12-05), as torch-fidelity rebuilt it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assets import AssetsConfig, needs_assets, read_state, resolve, seeded
from engine.checkpoint.weights import load_strict
from engine.devices import full_precision, is_gpu
from evaluations.metrics.extractor import Extractor
from tokenizer.frozen.base import Frozen, channels_last

INPUT_SIZE = 299  # pixels

# The layers of torch-fidelity's network, in order; spatial features are read behind MIDDLE.
STEM = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"]
MIDDLE = ["Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"]
TAIL = ["Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"]

SPATIAL_CHANNELS = 7  # of the 192 of TensorFlow's mixed_6/conv, which is Mixed_6d.branch1x1 here


@needs_assets("inception")
class InceptionExtractor(Extractor):
    """pool (B,2048): FID, precision, recall; spatial (B,2023): sFID; logits (B,1008): Inception Score.

    The resize is TensorFlow 1's (bilinear, no half pixels, no antialias). Spatial features are in NHWC order, as in the
    published reference files; logits are without bias (ADM's Inception Score).
    """

    metric = "fid"
    dim = 2048
    spatial_dim = 17 * 17 * SPATIAL_CHANNELS
    num_classes = 1008
    capabilities = frozenset({"published", "float_images"})
    input_resize = f"TensorFlow 1 bilinear to {INPUT_SIZE}, not antialiased"

    def __init__(self, assets: AssetsConfig) -> None:
        super().__init__()
        resolved = resolve("inception", assets)
        with seeded():
            network = _unloaded_network()
        if resolved.path is not None:
            load_strict(network, read_state(resolved.path), resolved.path)
        self.network = Frozen(network)
        self.stamp = resolved.stamp
        self.has_published_weights = resolved.is_known

    @torch.inference_mode()
    def forward(self, images_u8: Tensor) -> dict[str, Tensor]:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        if images_u8.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, found {images_u8.dtype}")
        size = (INPUT_SIZE, INPUT_SIZE)
        x = interpolate_bilinear_2d_like_tensorflow1x(images_u8.float(), size=size, align_corners=False)
        return self._features((x - 128) / 128)

    @torch.inference_mode()
    def features_of_floats(self, images: Tensor) -> dict[str, Tensor]:
        """Features of float images in [-1,1], resized by torch's bilinear rule."""
        size = (INPUT_SIZE, INPUT_SIZE)
        return self._features(F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False))

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B,3,299,299) in [-1,1] -> features by name."""
        # On a CPU convolutions are half again as fast in this layout. On a GPU they are not, in float32 without TF32.
        if not is_gpu(x.device):
            x = channels_last(x)

        network = self.network.network
        with full_precision(x.device):
            for name in (*STEM, *MIDDLE):
                x = getattr(network, name)(x)
            spatial = network.Mixed_6d.branch1x1(x)[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
            for name in TAIL:
                x = getattr(network, name)(x)
            pool = x.flatten(1)
            return {"pool": pool, "spatial": spatial, "logits": pool @ network.fc.weight.T}


def _unloaded_network() -> nn.Module:
    """torch-fidelity's network with initial weights.

    Its constructor unpickles a weights file. Here it is given an empty one, because the real file is read without
    unpickling afterwards.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, *args, **kwargs):
            return super().load_state_dict(state, *args, **kwargs) if state else None

    with tempfile.TemporaryDirectory() as folder:
        placeholder = Path(folder) / "empty.pth"
        torch.save({}, placeholder)
        return Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(placeholder))
