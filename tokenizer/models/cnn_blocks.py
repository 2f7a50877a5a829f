"""Building blocks of the CNN encoders and decoders."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


def depth_to_space(x: Tensor) -> Tensor:
    """(B,4C,h,w) -> (B,C,2h,2w) in DCR order:

    channel (dy*2 + dx)*C + c goes to out[c, 2y+dy, 2x+dx] (not pixel_shuffle).
    """
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    parallel_unit = "recompute"

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
