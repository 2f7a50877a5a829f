"""The discriminator of B-L (dino disc): small heads on a frozen DINO-v1 ViT-S/16 (StyleGAN-T, arXiv:2301.09515, section
3.2).

Features are taken before the first block and after blocks 3, 6, 9 and 12, the class token added to every patch token.
Five heads of spectrally normed 1D convolutions give 196 logits each: images (B,3,H,W) in [-1,1] -> logits (B,980).
7,386,245 trained parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from engine.assets import AssetsConfig
from engine.validation import Section
from tokenizer.discriminators.base import Discriminator
from tokenizer.discriminators.diff_augment import diff_augment
from tokenizer.frozen.normalization import IMAGENET
from tokenizer.frozen.timm_vit import timm_vit

SIZE, WIDTH = 224, 384  # pixels and channels of the backbone


AFTER_BLOCKS = (3, 6, 9, 12)  # counted from 1


VIRTUAL_BATCH = 8


class LocalBatchNorm(nn.Module):
    """Batch norm over groups of at most 8 samples, never over the whole batch. (B,C,L) -> (B,C,L).

    The published one needs a batch that divides into ceil(B / 8) groups; here the next number of groups that divides B
    is used.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        groups = next(g for g in range(-(-count // VIRTUAL_BATCH), count + 1) if count % g == 0)
        grouped = x.float().unflatten(0, (groups, -1))
        variance, mean = torch.var_mean(grouped, dim=(1, 3), keepdim=True, unbiased=False)
        normed = ((grouped - mean) * torch.rsqrt(variance + 1e-5)).flatten(0, 1).type_as(x)
        return normed * self.weight[:, None] + self.bias[:, None]


class Block(nn.Module):
    """Spectrally normed convolution, local batch norm, leaky ReLU."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        padding = {"padding": kernel // 2, "padding_mode": "circular"} if kernel > 1 else {}
        self.conv = spectral_norm(nn.Conv1d(WIDTH, WIDTH, kernel, **padding))
        self.norm = LocalBatchNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class Head(nn.Module):
    """Features (B,384,196) -> logits (B,196)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(1), Block(9)
        self.out = spectral_norm(nn.Conv1d(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out((x + self.second(x)) / 2**0.5)[:, 0]


@dataclass(kw_only=True, slots=True)
class DINOConfig(Section):
    """It has no options."""


class DINODiscriminator(Discriminator):
    """See the module docstring. The backbone is not a sub-module: it is neither trained nor saved."""

    config_class = DINOConfig

    def __init__(self, config: DINOConfig, assets: AssetsConfig) -> None:
        super().__init__(config, assets)
        backbone, self.stamp = timm_vit("dino_s16", SIZE, assets)

        # The bias of the keys is zeroed, as released.
        with torch.no_grad():
            for block in backbone.network.blocks:
                block.attn.qkv.bias[WIDTH : 2 * WIDTH] = 0

        # In a list, so that it is not a sub-module.
        self._backbone = [backbone]
        self.heads = nn.ModuleList(Head() for _ in range(1 + len(AFTER_BLOCKS)))

    def to(self, *args, **kwargs) -> DINODiscriminator:
        self._backbone[0].to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def features(self, images: Tensor) -> list[Tensor]:
        """Five maps (B,384,196). Larger images are cropped at random (half of the time) or resized by area."""
        if min(images.shape[-2:]) > SIZE and torch.rand(()) < 0.5:
            top, left = (int(torch.randint(0, side - SIZE + 1, ())) for side in images.shape[-2:])
            images = images[..., top : top + SIZE, left : left + SIZE]
        else:
            images = F.interpolate(images, size=(SIZE, SIZE), mode="area")
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in IMAGENET)
        vit = self._backbone[0].network
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(((images + 1) / 2 - mean) / std))))
        taps = [x]
        for number, block in enumerate(vit.blocks, start=1):
            x = block(x)
            if number in AFTER_BLOCKS:
                taps.append(x)
        return [(tap[:, 1:] + tap[:, :1]).transpose(1, 2) for tap in taps]

    def logits(self, images: Tensor) -> Tensor:
        features = self.features(diff_augment(images))
        return torch.cat([head(tap) for head, tap in zip(self.heads, features, strict=True)], dim=1)
