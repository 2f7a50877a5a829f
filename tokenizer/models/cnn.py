"""The convolutional halves of GigaTok's hybrid tokenizer (arXiv:2504.08736, section 3.1; the VQGAN CNN with two
changes).

The decoder norms each level with statistics of its own input (adaptive group norm) and upsamples by depth-to-space.
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
    mid_blocks: int = 2
    norm_groups: int = 32  # groups of every group norm
    adaptive_gain: float = 0.0  # bias of the adaptive gain at the start; 0 = as released (levels start nearly silent)

    def __post_init__(self) -> None:
        if not self.channel_multipliers or min([self.base_channels, self.norm_groups, *self.channel_multipliers]) < 1:
            raise ConfigError(
                "model.hybrid.cnn: base_channels, norm_groups and all channel_multipliers must be 1 or more"
            )
        if min(self.encoder_res_blocks, self.decoder_res_blocks) < 1 or self.mid_blocks < 0:
            raise ConfigError("model.hybrid.cnn: res_blocks must be 1 or more, mid_blocks 0 or more")
        bad = [w for w in self.widths if w % self.norm_groups]
        if bad:
            raise ConfigError(
                f"model.hybrid.cnn: widths {self.widths} (base_channels x channel_multipliers) must be divisible by "
                f"norm_groups={self.norm_groups}"
            )

    @property
    def widths(self) -> list[int]:
        return [self.base_channels * m for m in self.channel_multipliers]

    @property
    def factor(self) -> int:
        """Image size over grid size."""
        return 2 ** (len(self.channel_multipliers) - 1)


def depth_to_space(x: Tensor) -> Tensor:
    """(B,4C,h,w) -> (B,C,2h,2w) in DCR order:

    channel (dy*2 + dx)*C + c goes to out[c, 2y+dy, 2x+dx] (not pixel_shuffle).
    """
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

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


class Downsample(nn.Module):
    """Halves the map: zeros right and below only, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


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
    """ResBlocks of one resolution and, where there is one, the change to the next."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, groups: int, resample: dict[str, nn.Module]
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * depth
        self.res = nn.ModuleList(ResBlock(a, b, groups) for a, b in pairwise(widths))
        for name, module in resample.items():
            self.add_module(name, module)
        self.resample = next(iter(resample), None)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res:
            x = block(x)
        return x if self.resample is None else getattr(self, self.resample)(x)


class CNNEncoder(nn.Module):
    """Images (B,3,H,W) -> features (B,z_channels,h,w)."""

    def __init__(self, config: CNNConfig, z_channels: int) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            resample = {"downsample": Downsample(width)} if i + 1 < len(widths) else {}
            self.conv_blocks.append(Level(widths[max(i - 1, 0)], width, config.encoder_res_blocks, groups, resample))
        self.mid = nn.ModuleList(ResBlock(widths[-1], widths[-1], groups) for _ in range(config.mid_blocks))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.conv_blocks:
            x = level(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class CNNDecoder(nn.Module):
    """Features (B,z_channels,h,w) -> images (B,3,H,W), not clamped.

    The features are also the style of every adaptive norm.
    """

    def __init__(self, config: CNNConfig, z_channels: int) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(z_channels, widths[0], 3, padding=1)
        self.mid = nn.ModuleList(ResBlock(widths[0], widths[0], groups) for _ in range(config.mid_blocks))
        entering = [widths[max(k - 1, 0)] for k in range(len(widths))]
        self.adaptive = nn.ModuleList(AdaptiveGroupNorm(c, z_channels, groups) for c in entering)
        self.conv_blocks = nn.ModuleList()
        for k, width in enumerate(widths):
            resample = {"upsample": DepthToSpaceUpsample(width)} if k + 1 < len(widths) else {}
            self.conv_blocks.append(Level(entering[k], width, config.decoder_res_blocks, groups, resample))
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv_in(features)
        for block in self.mid:
            x = block(x)
        for norm, level in zip(self.adaptive, self.conv_blocks, strict=True):
            x = level(norm(x, features))
        return self.conv_out(F.silu(self.norm_out(x)))

    @torch.no_grad()
    def set_adaptive_gain(self, gain: float) -> None:
        """Sets the bias of every adaptive gain (the released initialization has 0)."""
        for norm in self.adaptive:
            norm.gamma.bias.fill_(gain)
