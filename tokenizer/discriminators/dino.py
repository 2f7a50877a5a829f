"""The discriminator of GigaTok's B-L ("dino disc"): small heads on a frozen DINO ViT-S/16.

It is that of StyleGAN-T (arXiv:2301.09515, section 3.2); DINO: arXiv:2104.14294. Features are taken before the first
block and after blocks 3, 6, 9 and 12, the class token added to every patch token. Each has a head of spectrally normed
1D convolutions over the patches. 7,386,245 trained parameters.

Shapes    images (B,3,H,W) in [-1,1] -> five feature maps (B,384,196), one column per patch -> logits (B,5*196)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.utils.parametrizations import spectral_norm

from engine.arithmetic import ceil_div
from engine.assets import AssetsConfig, needs_assets
from engine.flops import FORWARD, THROUGH, TRAINED, PartFlops, conv_flops
from engine.validation import Section
from tokenizer.discriminators.base import Discriminator
from tokenizer.discriminators.diff_augment import diff_augment
from tokenizer.frozen.normalization import IMAGENET
from tokenizer.frozen.timm_vit import timm_vit, vit_flops

SIZE = 224  # pixels, side of the images that the backbone sees
WIDTH = 384  # channels of the backbone
AFTER_BLOCKS = (3, 6, 9, 12)  # blocks whose output is tapped, counted from 1
VIRTUAL_BATCH = 8  # largest number of images that one batch norm looks at


class LocalBatchNorm(nn.Module):
    """Batch norm over groups of at most `VIRTUAL_BATCH` images of the batch. (B,C,L) -> (B,C,L).

    The published one needs a batch that divides into ceil(B / 8) groups; here the next number of groups that divides B
    is used. It has no running statistics: evaluation mode is the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.float().unflatten(0, (self.num_groups(len(x)), -1))
        variance, mean = torch.var_mean(grouped, dim=(1, 3), keepdim=True, unbiased=False)
        normed = ((grouped - mean) * torch.rsqrt(variance + 1e-5)).flatten(0, 1).type_as(x)
        return normed * self.weight[:, None] + self.bias[:, None]

    @staticmethod
    def num_groups(batch_size: int) -> int:
        """The smallest number of equal groups with at most `VIRTUAL_BATCH` images each."""
        min_groups = ceil_div(batch_size, VIRTUAL_BATCH)
        return next(groups for groups in range(min_groups, batch_size + 1) if batch_size % groups == 0)


class Block(nn.Module):
    """Spectrally normed convolution over patches, local batch norm, leaky ReLU. (B,384,L) -> (B,384,L)."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        padding_mode = "circular" if kernel > 1 else "zeros"  # a kernel of 1 is not padded
        self.conv = spectral_norm(nn.Conv1d(WIDTH, WIDTH, kernel, padding=kernel // 2, padding_mode=padding_mode))
        self.norm = LocalBatchNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class Head(nn.Module):
    """Features (B,384,196) -> logits (B,196)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block(kernel=1)
        self.second = Block(kernel=9)
        self.out = spectral_norm(nn.Conv1d(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (x + self.second(x)) / 2**0.5  # a residual connection that keeps the variance
        return self.out(x)[:, 0]


@dataclass(kw_only=True, slots=True)
class DINOConfig(Section):
    """It has no options."""


@needs_assets("dino_s16")
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
        num_taps = 1 + len(AFTER_BLOCKS)
        self.heads = nn.ModuleList(Head() for _ in range(num_taps))

    def to(self, *args, **kwargs) -> DINODiscriminator:
        """Moves the heads, and the backbone too."""
        self._backbone[0].to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def features(self, images: Tensor) -> list[Tensor]:
        """Images (B,3,H,W) in [-1,1] -> five feature maps (B,384,196)."""
        images = (self._to_backbone_size(images) + 1) / 2
        mean, std = (torch.tensor(color, device=images.device).view(3, 1, 1) for color in IMAGENET)
        images = (images - mean) / std

        # The steps of timm's `forward_features` before its blocks.
        vit = self._backbone[0].network
        tokens = vit.patch_embed(images)
        tokens = vit._pos_embed(tokens)
        tokens = vit.patch_drop(tokens)
        tokens = vit.norm_pre(tokens)

        taps = [tokens]
        for number, block in enumerate(vit.blocks, start=1):
            tokens = block(tokens)
            if number in AFTER_BLOCKS:
                taps.append(tokens)

        # The class token, which comes first, is added to every patch token.
        return [(tap[:, 1:] + tap[:, :1]).transpose(1, 2) for tap in taps]

    @staticmethod
    def _to_backbone_size(images: Tensor) -> Tensor:
        """Resizes by area; larger images are cropped at random instead, half of the time. (B,3,224,224)."""
        height, width = images.shape[-2:]
        # A memory plan passes images without values; what decides the branch is drawn with values there too.
        with unset_fake_temporarily():
            is_cropped = min(height, width) > SIZE and bool(torch.rand(()) < 0.5)
            if is_cropped:
                top = int(torch.randint(0, height - SIZE + 1, ()))
                left = int(torch.randint(0, width - SIZE + 1, ()))

        if is_cropped:
            return images[..., top : top + SIZE, left : left + SIZE]
        return F.interpolate(images, size=(SIZE, SIZE), mode="area")

    def logits(self, images: Tensor) -> Tensor:
        features = self.features(diff_augment(images))
        return torch.cat([head(tap) for head, tap in zip(self.heads, features, strict=True)], dim=1)

    def training_flops(self, image_size: int) -> tuple[PartFlops, ...]:
        # Nothing of the backbone learns: in the discriminator's own update it has no gradients at all.
        backbone = (THROUGH + 2 * FORWARD) * vit_flops(self._backbone[0])
        num_patches = self._backbone[0].network.patch_embed.num_patches
        convolutions = [layer for layer in self.heads.modules() if isinstance(layer, nn.Conv1d)]
        heads = (THROUGH + 2 * TRAINED) * sum(conv_flops(layer, num_patches) for layer in convolutions)
        return (
            PartFlops("discriminator's backbone", "matrix", backbone),
            PartFlops("discriminator", "convolution", heads),
        )
