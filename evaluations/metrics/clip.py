"""CLIP ViT-L/14 at 336 px (arXiv:2103.00020), the network of CMMD (arXiv:2401.09603)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from engine.assets import AssetsConfig, needs_assets
from engine.devices import full_precision
from evaluations.metrics.extractor import Extractor
from evaluations.metrics.input_pixels import central_square, normalized, pil_bicubic
from tokenizer.frozen.normalization import CLIP
from tokenizer.frozen.timm_vit import adapted_vit


def image_tower(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights of timm's network, out of its own file or one in the layout of OpenAI or open_clip."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    return checkpoint_filter_fn(state, network)


@needs_assets("clip_l336")
class CLIPExtractor(Extractor):
    """pool (B,768): the projected embedding of the image, not scaled to unit length (CMMD does that).

    The central square, resized to 336 x 336 px by Pillow on 8-bit values. The activation is quickgelu, with which
    OpenAI trained the network: the exact GELU would change features by almost 1 %. Everything is float32, without
    autocast and TF32.
    """

    asset: ClassVar[str] = "clip_l336"
    input_size: ClassVar[int] = 336  # pixels
    metric = "frechet_clip_l336"
    dim = 768
    capabilities = frozenset({"cmmd"})
    input_resize = "central square to 336, Pillow bicubic, uint8"
    facts = {"resize": input_resize, "positions": "stored", "activation": "quickgelu"}

    mean: Tensor
    std: Tensor

    def __init__(self, assets: AssetsConfig) -> None:
        super().__init__()
        self.network, weights = adapted_vit(self.asset, assets, image_tower, num_classes=self.dim)
        self.stamp = weights.stamp
        self.has_published_weights = weights.is_known
        mean, std = CLIP
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @torch.inference_mode()
    def forward(self, images_u8: Tensor) -> dict[str, Tensor]:
        pixels = pil_bicubic(central_square(images_u8), self.input_size)
        with full_precision(images_u8.device):
            return {"pool": self.network(normalized(pixels, self.mean, self.std))}
