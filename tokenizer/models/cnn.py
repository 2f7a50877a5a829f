"""The convolutional encoder and decoder of VQGAN, in the styles that were released.

    GIGATOK    no attention; each level of the decoder begins with an adaptive group norm, steered by statistics of the
               decoder's input, and upsamples by depth-to-space                   arXiv:2504.08736, section 3.1
    LLAMAGEN   attention at the coarsest level and in the middle; plain norms; nearest-neighbor upsampling
                                                                                  arXiv:2406.06525, section 3.1
    WETOK      as GIGATOK, but most convolutions have no bias, downsampling pads all sides, and the encoder ends with a
               1x1 convolution                                                    arXiv:2508.05599, Open-MAGVIT2's CNN
    VAR        as LLAMAGEN; one convolution gives queries, keys and values         arXiv:2404.02905, released code
    MASKGIT    plain norms and no attention; most convolutions have no bias, downsampling is a mean of 2x2 pixels, the
               encoder ends with a 1x1 convolution, and projections of ResBlocks read their own result
                                                                                  arXiv:2202.04200, released code

Encoder and decoder have one level of ResBlocks per resolution, and a few more blocks, the middle, on the coarsest map.

Shapes    images (B,3,H,W)      maps (B,C,H,W), channels first      features (B,z_channels,h,w), h = H / factor
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.flops import TRAINED, conv_flops
from engine.validation import Problem, Section, at_least
from tokenizer.models.cnn_blocks import (
    NORM_EPS,
    AdaptiveGroupNorm,
    AttentionBlock,
    AveragePool,
    DepthToSpaceUpsample,
    Downsample,
    NearestUpsample,
    OutputShortcutResBlock,
    ResBlock,
    drop_biases,
)


@dataclass(kw_only=True, slots=True)
class CNNConfig(Section):
    """Widths and depths. An image has 2 ** (number of multipliers - 1) times the side of the grid."""

    base_channels: int = 128
    channel_multipliers: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])  # from the finest level on
    encoder_res_blocks: int = 2  # per level
    decoder_res_blocks: int = 3  # per level
    mid_blocks: int = 2  # ResBlocks of the middle; with attention there is one more block, after the first
    norm_groups: int = 32  # groups of every group norm
    adaptive_gain: float = 0.0  # bias of the adaptive gain at the start; 0 = as released (levels start nearly silent)

    def problems(self) -> Iterator[Problem]:
        for name in ("base_channels", "encoder_res_blocks", "decoder_res_blocks", "norm_groups"):
            yield from at_least(self, name, 1)
        yield from at_least(self, "mid_blocks", 0)

        multipliers = self.channel_multipliers
        if not multipliers or min(multipliers) < 1:
            yield Problem("channel_multipliers", multipliers, "a list of one or more numbers, each 1 or more")
        elif self.norm_groups > 0 and any(width % self.norm_groups != 0 for width in self.widths):
            accepted = f"a divisor of all widths {self.widths} (base_channels x channel_multipliers)"
            yield Problem("norm_groups", self.norm_groups, accepted)

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from the finest on."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def factor(self) -> int:
        """Image size over grid size."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class CNNStyle:
    """What the released families do differently."""

    attention: bool  # after every ResBlock of the coarsest level, and in the middle
    adaptive_norm: bool  # before every level of the decoder
    depth_to_space: bool  # upsampling; otherwise nearest neighbor
    bias: bool = True  # in the ResBlocks and the encoder's first convolution
    symmetric: bool = False  # downsampling pads all sides, not only right and below
    out_kernel: int = 3  # side of the kernel of the encoder's last convolution
    fused_attention: bool = False  # one convolution for queries, keys and values
    average_pool: bool = False  # downsampling without parameters
    res_block: type[ResBlock] = ResBlock

    def attention_block(self, channels: int, groups: int) -> AttentionBlock:
        return AttentionBlock(channels, groups, self.fused_attention)

    def downsample(self, channels: int) -> nn.Module:
        return AveragePool() if self.average_pool else Downsample(channels, self.symmetric)


GIGATOK = CNNStyle(attention=False, adaptive_norm=True, depth_to_space=True)
LLAMAGEN = CNNStyle(attention=True, adaptive_norm=False, depth_to_space=False)
WETOK = CNNStyle(attention=False, adaptive_norm=True, depth_to_space=True, bias=False, symmetric=True, out_kernel=1)
VAR = replace(LLAMAGEN, fused_attention=True)
MASKGIT = CNNStyle(
    attention=False,
    adaptive_norm=False,
    depth_to_space=False,
    bias=False,
    out_kernel=1,
    average_pool=True,
    res_block=OutputShortcutResBlock,
)


class Level(nn.Module):
    """The ResBlocks of one resolution, and the change to the next one.

    With `attention` each ResBlock is followed by an attention block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        groups: int,
        style: CNNStyle,
        *,
        attention: bool = False,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * depth
        num_attentions = depth if attention else 0
        self.res = nn.ModuleList(style.res_block(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(style.attention_block(out_channels, groups) for _ in range(num_attentions))
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[i](x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x

    def flops(self, positions: int) -> int:
        """Operations on one map of `positions` positions (engine/flops.py)."""
        resampling = [module for module in (self.downsample, self.upsample) if module is not None]
        return sum(module.flops(positions) for module in (*self.res, *self.attn, *resampling))


def build_middle(width: int, config: CNNConfig, style: CNNStyle) -> nn.ModuleList:
    """Builds the blocks on the coarsest map: ResBlocks; with attention, one such block after the first."""
    blocks: list[nn.Module] = [style.res_block(width, width, config.norm_groups) for _ in range(config.mid_blocks)]
    if style.attention:
        blocks.insert(1, style.attention_block(width, config.norm_groups))
    return nn.ModuleList(blocks)


class CNNEncoder(nn.Module):
    """Images (B,3,H,W) -> features (B,z_channels,h,w)."""

    def __init__(self, config: CNNConfig, z_channels: int, style: CNNStyle) -> None:
        super().__init__()
        widths = config.widths
        groups = config.norm_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1, bias=style.bias)

        # Levels from fine to coarse; each but the coarsest ends by halving the map.
        self.conv_blocks = nn.ModuleList()
        in_channels = widths[0]
        for number, width in enumerate(widths, start=1):
            is_coarsest = number == len(widths)
            level = Level(
                in_channels,
                width,
                config.encoder_res_blocks,
                groups,
                style,
                attention=style.attention and is_coarsest,
                downsample=None if is_coarsest else style.downsample(width),
            )
            self.conv_blocks.append(level)
            in_channels = width

        # The middle, and the projection to features.
        self.mid = build_middle(widths[-1], config, style)
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

    def flops(self, image_size: int) -> int:
        """Operations on one square image (engine/flops.py)."""
        positions = image_size**2
        total = conv_flops(self.conv_in, positions)
        for level in self.conv_blocks:
            total += level.flops(positions)
            if level.downsample is not None:
                positions //= 4
        return total + sum(block.flops(positions) for block in self.mid) + conv_flops(self.conv_out, positions)

    def training_flops(self, image_size: int) -> int:
        """The same with the backward pass: all gradients but that of the image."""
        return TRAINED * self.flops(image_size) - conv_flops(self.conv_in, image_size**2)


class CNNDecoder(nn.Module):
    """Features (B,z_channels,h,w) -> images (B,3,H,W), not clamped.

    With adaptive norms the features also steer the norm before each level. A decoder with `noise_channels` takes noise
    (B,noise_channels,h,w) beside the features; the noise steers no norm.
    """

    def __init__(self, config: CNNConfig, z_channels: int, style: CNNStyle, noise_channels: int = 0) -> None:
        super().__init__()
        widths = config.widths[::-1]  # from coarse to fine
        groups = config.norm_groups

        # The middle comes first.
        self.conv_in = nn.Conv2d(z_channels + noise_channels, widths[0], 3, padding=1)
        self.mid = build_middle(widths[0], config, style)

        # An adaptive norm of the input of each level.
        in_widths = [widths[0], *widths[:-1]]
        self.adaptive = nn.ModuleList()
        if style.adaptive_norm:
            self.adaptive.extend(AdaptiveGroupNorm(width, z_channels, groups) for width in in_widths)

        # Levels from coarse to fine; each but the finest ends by doubling the map.
        upsample_class = DepthToSpaceUpsample if style.depth_to_space else NearestUpsample
        self.conv_blocks = nn.ModuleList()
        for number, (in_channels, width) in enumerate(zip(in_widths, widths, strict=True), start=1):
            is_coarsest = number == 1
            is_finest = number == len(widths)
            level = Level(
                in_channels,
                width,
                config.decoder_res_blocks,
                groups,
                style,
                attention=style.attention and is_coarsest,
                upsample=None if is_finest else upsample_class(width),
            )
            self.conv_blocks.append(level)

        # The projection to pixels.
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        if not style.bias:
            drop_biases(self)

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        x = self.conv_in(features if noise is None else torch.cat([features, noise], dim=1))
        for block in self.mid:
            x = block(x)
        for i, level in enumerate(self.conv_blocks):
            if len(self.adaptive) > 0:
                x = self.adaptive[i](x, features)
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def flops(self, grid: int) -> int:
        """Operations on the features of one image, `grid` x `grid` cells (engine/flops.py)."""
        positions = grid**2
        total = conv_flops(self.conv_in, positions) + sum(block.flops(positions) for block in self.mid)
        total += sum(norm.flops() for norm in self.adaptive)
        for level in self.conv_blocks:
            total += level.flops(positions)
            if level.upsample is not None:
                positions *= 4
        return total + conv_flops(self.conv_out, positions)

    @torch.no_grad()
    def set_adaptive_gain(self, gain: float) -> None:
        """Sets the bias of every adaptive gain; it is 0 in the released initialization."""
        for norm in self.adaptive:
            norm.gamma.bias.fill_(gain)
