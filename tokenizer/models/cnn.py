"""The convolutional encoder and decoder of VQGAN, in the three styles that were released.

    GIGATOK    no attention; the decoder norms each level with statistics of its own input (adaptive group norm) and
               upsamples by depth-to-space                                        arXiv:2504.08736, section 3.1
    LLAMAGEN   attention at the coarsest level and in the middle; plain norms; nearest-neighbour upsampling
                                                                                  arXiv:2406.06525, section 3.1
    WETOK      as GIGATOK, but most convolutions have no bias, downsampling pads all sides, and the encoder ends with a
               1x1 convolution                                                    arXiv:2508.05599, Open-MAGVIT2's CNN

Channels-first maps: B batch, C width, H W pixels, h w grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.messages import ConfigError
from tokenizer.models.cnn_blocks import (
    NORM_EPS,
    AdaptiveGroupNorm,
    AttentionBlock,
    DepthToSpaceUpsample,
    Downsample,
    NearestUpsample,
    ResBlock,
    drop_biases,
)


@dataclass(kw_only=True, slots=True)
class CNNConfig:
    """Widths and depths. The factor between image and grid is 2 ** (number of multipliers - 1)."""

    base_channels: int = 128
    channel_multipliers: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])  # finest to coarsest level
    encoder_res_blocks: int = 2  # per level
    decoder_res_blocks: int = 3  # per level
    mid_blocks: int = 2  # with attention there is one more block, between the first and the second
    norm_groups: int = 32  # groups of every group norm
    adaptive_gain: float = 0.0  # bias of the adaptive gain at the start; 0 = as released (levels start nearly silent)

    def __post_init__(self) -> None:
        if not self.channel_multipliers or min([self.base_channels, self.norm_groups, *self.channel_multipliers]) < 1:
            raise ConfigError("model: cnn: base_channels, norm_groups and all channel_multipliers must be 1 or more")
        if min(self.encoder_res_blocks, self.decoder_res_blocks) < 1 or self.mid_blocks < 0:
            raise ConfigError("model: cnn: res_blocks must be 1 or more, mid_blocks 0 or more")
        bad = [w for w in self.widths if w % self.norm_groups]
        if bad:
            raise ConfigError(
                f"model: cnn: widths {self.widths} (base_channels x channel_multipliers) must be divisible by "
                f"norm_groups={self.norm_groups}"
            )

    @property
    def widths(self) -> list[int]:
        return [self.base_channels * m for m in self.channel_multipliers]

    @property
    def factor(self) -> int:
        """Image size over grid size."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class CNNStyle:
    """What the released families do differently."""

    attention: bool
    adaptive_norm: bool
    depth_to_space: bool
    bias: bool = True  # in the ResBlocks and the encoder's first convolution
    symmetric: bool = False  # downsampling pads all sides, not only right and below
    out_kernel: int = 3  # of the encoder's last convolution


GIGATOK = CNNStyle(attention=False, adaptive_norm=True, depth_to_space=True)


LLAMAGEN = CNNStyle(attention=True, adaptive_norm=False, depth_to_space=False)


WETOK = CNNStyle(attention=False, adaptive_norm=True, depth_to_space=True, bias=False, symmetric=True, out_kernel=1)


class Level(nn.Module):
    """ResBlocks of one resolution, each followed by attention where asked for, and the change to the next one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        groups: int,
        *,
        attention: bool = False,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * depth
        self.res = nn.ModuleList(ResBlock(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttentionBlock(out_channels, groups) for _ in range(depth if attention else 0))
        self.downsample, self.upsample = downsample, upsample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


def middle(width: int, config: CNNConfig, style: CNNStyle) -> nn.ModuleList:
    """The blocks at the coarsest resolution: ResBlocks, in the attention style with one attention after the first."""
    blocks: list[nn.Module] = [ResBlock(width, width, config.norm_groups) for _ in range(config.mid_blocks)]
    if style.attention:
        blocks.insert(1, AttentionBlock(width, config.norm_groups))
    return nn.ModuleList(blocks)


class CNNEncoder(nn.Module):
    """Images (B,3,H,W) -> features (B,z_channels,h,w)."""

    def __init__(self, config: CNNConfig, z_channels: int, style: CNNStyle) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1, bias=style.bias)
        self.conv_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            last, sizes = i + 1 == len(widths), (widths[max(i - 1, 0)], width, config.encoder_res_blocks, groups)
            down = None if last else Downsample(width, style.symmetric)
            self.conv_blocks.append(Level(*sizes, attention=last and style.attention, downsample=down))
        self.mid = middle(widths[-1], config, style)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, style.out_kernel, padding=style.out_kernel // 2)
        if not style.bias:
            drop_biases(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.conv_blocks:
            x = level(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class CNNDecoder(nn.Module):
    """Features (B,z_channels,h,w) -> images (B,3,H,W), not clamped. The features also steer the adaptive norms; noise
    (B,noise_channels,h,w), where the decoder takes any, does not.
    """

    def __init__(self, config: CNNConfig, z_channels: int, style: CNNStyle, noise_channels: int = 0) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(z_channels + noise_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], config, style)
        entering = [widths[max(k - 1, 0)] for k in range(len(widths))]
        self.adaptive = nn.ModuleList()
        if style.adaptive_norm:
            self.adaptive.extend(AdaptiveGroupNorm(c, z_channels, groups) for c in entering)
        upsample = DepthToSpaceUpsample if style.depth_to_space else NearestUpsample
        self.conv_blocks = nn.ModuleList()
        for k, width in enumerate(widths):
            sizes = (entering[k], width, config.decoder_res_blocks, groups)
            up = None if k + 1 == len(widths) else upsample(width)
            self.conv_blocks.append(Level(*sizes, attention=k == 0 and style.attention, upsample=up))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        if not style.bias:
            drop_biases(self)

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        x = self.conv_in(features if noise is None else torch.cat([features, noise], dim=1))
        for block in self.mid:
            x = block(x)
        for k, level in enumerate(self.conv_blocks):
            x = level(self.adaptive[k](x, features) if self.adaptive else x)
        return self.conv_out(F.silu(self.norm_out(x)))

    @torch.no_grad()
    def set_adaptive_gain(self, gain: float) -> None:
        """Sets the bias of every adaptive gain (the released initialization has 0)."""
        for norm in self.adaptive:
            norm.gamma.bias.fill_(gain)
