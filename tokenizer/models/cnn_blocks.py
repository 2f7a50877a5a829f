"""Blocks of VQGAN's encoder and decoder (arXiv:2012.09841), and those that others changed.

    ResBlock                two 3x3 convolutions around a skip connection
    OutputShortcutResBlock  the same, whose projection reads its own result (MaskGIT, arXiv:2202.04200)
    AttentionBlock          one head of attention over all positions
    Downsample, AveragePool halve the map; NearestUpsample and DepthToSpaceUpsample double it
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
        return self.nin_shortcut(x) + self.residual(x)

    def residual(self, x: Tensor) -> Tensor:
        """Both convolutions: (B,C,H,W) -> (B,out_channels,H,W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h)))

    def flops(self, positions: int) -> int:
        """See the module docstring."""
        convolutions = (layer for layer in self.children() if isinstance(layer, nn.Conv2d))
        return sum(conv_flops(layer, positions) for layer in convolutions)


class OutputShortcutResBlock(ResBlock):
    """Where the width changes: h + projection(h), h being the result of both convolutions. Elsewhere x + h.

    The input of such a block does not reach its output past the convolutions. MaskGIT's released networks are trained
    so, whatever was intended.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, groups)
        self.changes_width = in_channels != out_channels
        if self.changes_width:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.residual(x)
        return h + (self.nin_shortcut(h) if self.changes_width else x)


def drop_biases(network: nn.Module) -> None:
    """Removes the biases of the convolutions of all ResBlocks in `network`."""
    res_blocks = [module for module in network.modules() if isinstance(module, ResBlock)]
    for block in res_blocks:
        for layer in block.children():
            if isinstance(layer, nn.Conv2d):
                layer.register_parameter("bias", None)


class AttentionBlock(nn.Module):
    """x + one head of attention over all positions, as wide as the map. (B,C,H,W) -> (B,C,H,W).

    `fused`: queries, keys and values come from one convolution, in this order.
    """

    def __init__(self, channels: int, groups: int, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        if fused:
            self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        else:
            self.q = nn.Conv2d(channels, channels, 1)
            self.k = nn.Conv2d(channels, channels, 1)
            self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        maps = self.qkv(normed).chunk(3, dim=1) if self.fused else (self.q(normed), self.k(normed), self.v(normed))
        q, k, v = (_as_one_head(part) for part in maps)
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))

    def flops(self, positions: int) -> int:
        """See the module docstring."""
        convolutions = (layer for layer in self.children() if isinstance(layer, nn.Conv2d))
        projections = sum(conv_flops(layer, positions) for layer in convolutions)
        return projections + attention_flops(positions, positions, self.proj_out.in_channels)


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


class AveragePool(nn.Module):
    """Halves the map: the mean of each 2x2 block. It has no parameters, and additions that nobody counts."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    def flops(self, positions: int) -> int:
        """See the module docstring."""
        return 0


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
