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

from engine.config import ConfigError

NORM_EPS = 1e-6


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


def depth_to_space(x: Tensor) -> Tensor:
    """(B,4C,h,w) -> (B,C,2h,2w) in DCR order:

    channel (dy*2 + dx)*C + c goes to out[c, 2y+dy, 2x+dx] (not pixel_shuffle).
    """
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    scale_unit = "recompute"

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


def drop_biases(network: nn.Module) -> None:
    """Takes the biases of all ResBlocks away."""
    for block in network.modules():
        for layer in block.children() if isinstance(block, ResBlock) else ():
            if isinstance(layer, nn.Conv2d):
                layer.register_parameter("bias", None)


class Downsample(nn.Module):
    """Halves the map: zeros right and below, or on all sides, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(symmetric))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class NearestUpsample(nn.Module):
    """Doubles the map by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class AttentionBlock(nn.Module):
    """x + one head of attention over all positions, as wide as the map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        q, k, v = (layer(n).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class DepthToSpaceUpsample(nn.Module):
    """Doubles the map: a 3x3 convolution to four times the channels, then depth-to-space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.conv1(x))


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose gain and bias are linear in the spread and mean of `style`, per sample."""

    def __init__(self, channels: int, style_channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B,C,H,W), style (B,S,h,w) -> (B,C,H,W). The variance over space is unbiased; there is no `1 +`."""
        flat = style.flatten(2)
        spread = (flat.var(dim=2, unbiased=True) + NORM_EPS).sqrt()
        gain, bias = self.gamma(spread), self.beta(flat.mean(dim=2))
        return gain[..., None, None] * F.group_norm(x, self.groups, eps=NORM_EPS) + bias[..., None, None]


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
