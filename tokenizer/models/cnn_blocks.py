"""Blocks of VQGAN's encoder and decoder (arXiv:2012.09841), and those that GigaTok and WeTok changed.

    ResBlock                two 3x3 convolutions around a skip connection
    AttentionBlock          one head of attention over all positions
    Downsample              halves the map; NearestUpsample and DepthToSpaceUpsample double it
    AdaptiveGroupNorm       group norm steered by statistics of a second map (MAGVIT-v2, arXiv:2310.05737)

Channels-first maps: B batch, C channels, H W height and width. All group norms have epsilon `NORM_EPS`. `flops` is what
a block computes for one image (engine/flops.py), of a map with `positions` = H * W.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from engine.flops import attention_flops, conv_flops, linear_flops

NORM_EPS = 1e-6


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))). (B,C,H,W) -> (B,out_channels,H,W)."""

    parallel_unit = "recompute"  # activation checkpointing keeps only the input; see engine.parallel

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

    def flops(self, positions: int) -> int:
        """See the module docstring."""
        convolutions = (layer for layer in self.children() if isinstance(layer, nn.Conv2d))
        return sum(conv_flops(layer, positions) for layer in convolutions)


def drop_biases(network: nn.Module) -> None:
    """Removes the biases of the convolutions of all ResBlocks in `network`."""
    res_blocks = [module for module in network.modules() if isinstance(module, ResBlock)]
    for block in res_blocks:
        for layer in block.children():
            if isinstance(layer, nn.Conv2d):
                layer.register_parameter("bias", None)


class AttentionBlock(nn.Module):
    """x + one head of attention over all positions, as wide as the map. (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q = _as_one_head(self.q(normed))
        k = _as_one_head(self.k(normed))
        v = _as_one_head(self.v(normed))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))

    def flops(self, positions: int) -> int:
        """See the module docstring."""
        projections = sum(conv_flops(layer, positions) for layer in (self.q, self.k, self.v, self.proj_out))
        return projections + attention_flops(positions, positions, self.q.out_channels)


def _as_one_head(x: Tensor) -> Tensor:
    """A map (B,C,H,W) -> one token per position, with an axis of size 1 for the head: (B,1,H*W,C)."""
    return x.flatten(2).transpose(1, 2)[:, None]


# ------------------------------------------------------------------------------------------------ change of resolution
class Downsample(nn.Module):
    """Halves the map: zeros right and below, or on all sides, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric  # zeros on all sides
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        if not self.symmetric:
            x = F.pad(x, (0, 1, 0, 1))  # left, right, above, below
        return self.conv(x)

    def flops(self, positions: int) -> int:
        """See the module docstring."""
        return conv_flops(self.conv, positions // 4)


class NearestUpsample(nn.Module):
    """Doubles the map by repeating every pixel, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def flops(self, positions: int) -> int:
        """See the module docstring."""
        return conv_flops(self.conv, 4 * positions)


class DepthToSpaceUpsample(nn.Module):
    """Doubles the map: a 3x3 convolution to four times the channels, then depth-to-space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.conv1(x))

    def flops(self, positions: int) -> int:
        """See the module docstring."""
        return conv_flops(self.conv1, positions)


def depth_to_space(x: Tensor) -> Tensor:
    """(B,4C,H,W) -> (B,C,2H,2W) in DCR order, which is not that of `pixel_shuffle`.

    Channel (dy*2 + dx)*C + c at (y,x) becomes channel c at (2y+dy, 2x+dx).
    """
    b, c, h, w = x.shape
    by_offset = x.view(b, 2, 2, c // 4, h, w)  # (B,dy,dx,C,H,W)
    return by_offset.permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


# ------------------------------------------------------------------------------------------------ adaptive norm
class AdaptiveGroupNorm(nn.Module):
    """Group norm whose gain and bias are linear in the std and mean of a second map, the style, per image."""

    def __init__(self, channels: int, style_channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B,C,H,W), style (B,S,h,w) -> (B,C,H,W).

        The variance of the style over space is unbiased, so it needs two cells or more. The gain is what the linear
        layer gives, without the usual `1 +`.
        """
        flat_style = style.flatten(2)
        std = (flat_style.var(dim=2, unbiased=True) + NORM_EPS).sqrt()
        mean = flat_style.mean(dim=2)
        gain = self.gamma(std)
        bias = self.beta(mean)
        return gain[..., None, None] * F.group_norm(x, self.groups, eps=NORM_EPS) + bias[..., None, None]

    def flops(self) -> int:
        """See the module docstring."""
        return linear_flops(self.gamma, 1) + linear_flops(self.beta, 1)
