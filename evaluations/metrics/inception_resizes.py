"""Inception behind the resizes of other evaluations of FID: pytorch-fid, clean-fid, torchmetrics.

The network and its weights are those of `InceptionExtractor`. A distance of these features is an FID under another
rule: it is never called gFID or rFID, and statistics in ADM's layout are not theirs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from evaluations.metrics.inception import INPUT_SIZE, InceptionExtractor

SIZE = (INPUT_SIZE, INPUT_SIZE)


class ResizedInception(InceptionExtractor):
    """pool (B,2048) of images that `network_input` resizes."""

    spatial_dim = None
    num_classes = None
    capabilities = frozenset()

    @staticmethod
    def network_input(images_u8: Tensor) -> Tensor:
        """Images uint8 (B,3,H,W) -> (B,3,299,299), about in [-1,1]."""
        raise NotImplementedError

    @torch.inference_mode()
    def forward(self, images_u8: Tensor) -> dict[str, Tensor]:
        if images_u8.dtype != torch.uint8:
            raise ValueError(f"expected uint8 images, found {images_u8.dtype}")
        return {"pool": self._features(self.network_input(images_u8))["pool"]}


class TorchInception(ResizedInception):
    """The resize of pytorch-fid, and of WeTok's evaluation: torch's bilinear one, not antialiased, of [0,1]."""

    input_resize = f"torch bilinear to {INPUT_SIZE}, not antialiased"
    facts = {"resize": input_resize}

    @staticmethod
    def network_input(images_u8: Tensor) -> Tensor:
        return 2 * F.interpolate(images_u8.float() / 255, size=SIZE, mode="bilinear", align_corners=False) - 1


class PillowInception(ResizedInception):
    """The resize of clean-fid (arXiv:2104.11222): Pillow's bicubic one of each channel as floats, not rounded."""

    input_resize = f"Pillow bicubic per float channel to {INPUT_SIZE}, not rounded"
    facts = {"resize": input_resize}

    @staticmethod
    def network_input(images_u8: Tensor) -> Tensor:
        channels = images_u8.flatten(0, 1).float().cpu().numpy()
        resized = [np.asarray(Image.fromarray(channel).resize(SIZE, Image.Resampling.BICUBIC)) for channel in channels]
        pixels = torch.from_numpy(np.stack(resized)).unflatten(0, (-1, 3)).to(images_u8.device)
        return (pixels - 128) / 128


class AntialiasedInception(ResizedInception):
    """The resize of torchmetrics since 2025: torch's bilinear one with antialias."""

    input_resize = f"torch bilinear to {INPUT_SIZE} with antialias"
    facts = {"resize": input_resize}

    @staticmethod
    def network_input(images_u8: Tensor) -> Tensor:
        resized = F.interpolate(images_u8.float(), size=SIZE, mode="bilinear", align_corners=False, antialias=True)
        return (resized - 128) / 128
